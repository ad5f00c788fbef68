mod models;
mod prompts;
mod serving;
mod spans;
mod tokenizers;

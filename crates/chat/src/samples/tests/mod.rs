mod models;
mod serving;
mod spans;
mod tokenizers;

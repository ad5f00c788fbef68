//! Claims about nextword as a whole: several crates together, and the built program.

#![recursion_limit = "256"]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::print_stdout
)]
#![allow(
    clippy::similar_names,
    clippy::items_after_statements,
    clippy::struct_field_names
)]

mod any_model; // small models at random, over every option
mod backends; // the same numbers on flex, ndarray and wgpu
mod chat; // conversations at the terminal
mod checkpoints; // what is damaged is noticed, and an older checkpoint is used
mod commands; // the program as a new user meets it
mod compatibility; // run folders and model folders of version 0.1
mod configs; // every file in configs/ parses, builds and says the truth
mod docs; // the course shows what its commands write
mod explain; // every number, and where it comes from
mod explain_reference; // PyTorch's numbers inside models
mod explain_schema; // a story's JSON is what the schema says
mod explain_statquest; // every displayed number, from the weights
mod explain_story; // who spoke for a word, what if, every output
mod explain_terminal; // the terminal, as wide as it is told
mod foreign; // published models: their configs, tokenizers and vocabularies
mod gguf; // files for llama.cpp, read back
mod gradients; // finite differences, the mask, accumulation
mod hostile; // damaged and harmful files from elsewhere
mod hostile_templates; // chat templates within their bounds
mod layering; // which crate may use which
mod parity; // models of other programs, in and out
mod place; // where the tests of the program run it
mod quantized; // weights of 8 and 4 bits
mod reference; // PyTorch's logits, losses, gradients and updates
mod refusals; // wrong inputs: one sentence, the right code, nothing lost
mod resume; // bitwise, whatever stopped the run
mod serving; // a record behind HTTP
mod serving_bounds; // what a server bears, and whom it lets in
mod terminology; // the glossary holds
mod three_uses; // any backend, models that load anywhere, layers by configuration
mod util;

//! Tests of nextword as a whole: several crates together, and the built program.

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

mod activation_gradients; // every activation and gate on flex, ndarray and wgpu
mod adapter_damage; // damaged adapter folders and files of conversations
mod adapters; // runs that train adapters, and adapters in place of models
mod architecture_models; // decoding, padding and probes of encoders, prefix models and encoder-decoders
mod architectures; // encoders, prefix models and encoder-decoders, compared with PyTorch
mod attention_masks; // every kind of mask on flex, ndarray and wgpu
mod backends; // the same losses on flex, ndarray and wgpu
mod chat; // conversations in the terminal
mod chat_requests; // fields of requests are obeyed or rejected
mod checkpoints; // damage is detected, and an older checkpoint is used
mod command_line; // output files, arguments, and what is printed
mod commands; // the program as a new user sees it
mod compatibility; // run folders and model folders of version 0.1
mod configs; // every file in configs/ parses and builds
mod conversations; // training on them, and what the server sends
mod detached_runs; // finetuned runs without the model that they started from
mod docs; // the course shows real output, and named files exist
mod exit_codes; // the same for the same fault
mod experiments; // sweeps, comparisons, checks of data, exported metrics
mod explain; // every value and its derivation
mod explain_adapters; // the operations of an adapter, the base model beside it
mod explain_architectures; // encoders, prefix models, encoder-decoders
mod explain_interventions; // removed parts, gradients, ties
mod explain_learner; // what a learner reads: sums, names, verification, addresses
mod explain_pages; // the two-layer preset, removed parts in the terminal, page sizes
mod explain_reference; // PyTorch's intermediate tensors
mod explain_report; // contributions, what-if edits, output formats
mod explain_schema; // the JSON of a report matches its schema
mod explain_statquest; // every displayed value, recomputed from the weights
mod explain_terminal; // terminal output at any width
mod gguf; // files for llama.cpp, read back
mod gguf_blocks; // matrices of all block types stay quantized
mod gguf_commands; // GGUF files in place of model folders
mod gguf_damage; // damaged GGUF files
mod gguf_file; // changes of single entries
mod gguf_import; // models in GGUF files
mod gguf_read_tokenizers; // their tokenizers, read
mod gguf_tokenizers; // their tokenizers and special tokens
mod gpu_steps; // launches and repetition of whole steps on a software adapter
mod gradients; // finite differences, the causal mask, gradient accumulation
mod hub; // models from the Hub
#[path = "../crates/hub/src/test_server.rs"]
#[allow(dead_code)] // The crate's own tests use all of it.
mod hub_server; // a Hub on this machine
mod hugging_face; // published configs, tokenizers and vocabularies
mod import_faults; // folders as other programs write them
#[cfg(target_os = "linux")]
mod inference_memory; // quantized weights, and little more
mod invalid_input; // one clear error, the right exit code, nothing lost
mod layering; // which crate depends on which
mod library; // the crate `nextword`, compared with the program
mod logging; // --verbose and NEXTWORD_LOG
mod malformed_models; // damaged and malicious files
mod mapped_weights; // weights that stay in their file
mod merged_adapters; // merged adapters that are rounded, and exported ones
mod model_folders; // models where another kind of folder is needed
mod module_cycles; // modules of a crate do not depend on each other in circles
mod packed_samples; // several samples in a row
mod pairs; // sources with targets, masked tokens, and what to do with such models
mod parity; // import and export of transformers models
mod peft; // adapters of PEFT: logits, gradients, commands
mod peft_damage; // damaged folders of adapters
mod preferences; // pairs of completions, and what a run forgets
mod quantized; // 8- and 4-bit weights
mod quantized_export; // ... in files of other programs
mod random_models; // random small models that cover every option
mod rank_commands; // ranks in the program: refusals and plans
mod ranks; // several ranks have the bits of one
mod reference; // PyTorch's logits, losses, gradients and updates
mod resume; // bitwise resume after any stop
#[cfg(unix)]
mod run_folders; // moved, removed and interrupted runs
mod served_adapters; // adapters that share the weights of their base
mod served_tokens; // names of models, and the tokens of prompts
mod server_limits; // limits and access rules of the server
mod serving; // a model behind HTTP
mod special_token_paths; // they survive finetuning, export and import
mod special_tokens; // a model's own tokens, on every path
mod speculation; // proposals of tokens, 8-bit keys and values, pages of a server
mod terminology; // words and names that the glossary replaces
mod test_dir; // a temporary folder to run the program in
mod three_uses; // any backend, models that load anywhere, layers by configuration
mod tokenizer_choice; // the EOS token of a file, and vocabularies of version 0.1
mod tokenizer_patterns; // the cuts of Python's tokenizers
mod training; // lengths of sequences, counts of tokens, divergence
#[cfg(target_os = "linux")]
mod training_memory; // as planned, and no peak at the end
mod unknown_text; // text that a vocabulary does not have
mod unlearned_tokens; // unused ids and the unknown token are not generated
mod untrusted_templates; // chat templates stay within their limits
mod util;

//! Train, run and explain decoder-only Transformers, in Rust on Burn.

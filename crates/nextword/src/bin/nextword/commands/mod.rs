//! Subcommands, one module each.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod embed;
pub(crate) mod eval;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod export_metrics;
pub(crate) mod fill;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod plot;
pub(crate) mod prepare;
pub(crate) mod preview;
pub(crate) mod quantize;
pub(crate) mod resume;
pub(crate) mod serve;
pub(crate) mod sweep;
pub(crate) mod train;
pub(crate) mod watch;

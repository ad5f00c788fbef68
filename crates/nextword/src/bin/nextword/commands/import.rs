//! `nextword import FOLDER --out MODEL`.

use serde_json::json;

use crate::args::ImportArgs;
use crate::format::{count, sanitize};
use crate::output;

/// Converts a Hugging Face folder into a model folder.
pub(crate) fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let imported = nextword_convert::import(&args.folder, &args.out)?;
    if args.json {
        return output::print_json(&json!({
            "path": args.out, "model_type": imported.model_type, "config": imported.config,
            "card": imported.card, "chat_template": imported.has_chat_template,
        }));
    }
    let chat = if imported.has_chat_template {
        ", with its chat template"
    } else {
        ""
    };
    output::eprint_line(&sanitize(&format!(
        "{}: {} ({}{chat}); try: nextword generate {0} \"…\"",
        args.out.display(),
        count(imported.card.parameters, "parameter"),
        imported.model_type,
    )));
    Ok(())
}

//! `nextword import DIR --out RECORD`.

use serde_json::json;

use crate::args::ImportArgs;
use crate::format::{grouped, harmless};
use crate::output;

/// Turns a foreign folder into a record.
pub(crate) fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let imported = nextword_convert::import(&args.folder, &args.out)?;
    if args.json {
        return output::json(&json!({
            "path": args.out, "model_type": imported.model_type, "config": imported.config,
            "card": imported.card, "chat_template": imported.has_chat_template,
        }));
    }
    let chat = if imported.has_chat_template {
        ", with its chat template"
    } else {
        ""
    };
    output::note(&harmless(&format!(
        "{}: {} parameters ({}{chat}); try: nextword generate {0} \"…\"",
        args.out.display(),
        grouped(imported.card.parameters),
        imported.model_type,
    )));
    Ok(())
}

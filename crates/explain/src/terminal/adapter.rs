//! What an adapter changes.

use super::{LABEL_WIDTH, MAX_PARTS, Printer, count_of, display_width, printable};
use crate::adapter_report::{AdapterReport, ModuleChange};

impl Printer<'_> {
    /// The next token without and with the adapter, and the layers that the adapter changes most.
    pub(super) fn adapter(&mut self) {
        let Some(adapter) = self.report.adapter.clone() else {
            return;
        };
        let title = self.style("1", "base and tuned");
        let term = self.style("2", "(the next token without and with the adapter)");
        self.line(&format!("\n    {title}  {term}"));
        let name = "after the prompt";
        self.line(&format!("    {name:<LABEL_WIDTH$}      base     tuned"));
        for token in adapter.tokens.iter().take(self.view.top) {
            let text: String = printable(&token.text).chars().take(LABEL_WIDTH).collect();
            let pad = " ".repeat(LABEL_WIDTH - display_width(&text));
            let (base, tuned) = (100.0 * token.base, 100.0 * token.tuned);
            self.line(&format!("    {text}{pad}  {base:>7.2} %  {tuned:>6.2} %"));
        }
        self.module_changes(&adapter);
        if !adapter.replaced.is_empty() {
            let text = format!(
                "the adapter has other values than the base model for {}",
                adapter.replaced.join(", ")
            );
            self.wrap("    ", &text, "0");
        }
    }

    fn module_changes(&mut self, adapter: &AdapterReport) {
        let layers = self.view.layers.clone();
        let is_selected = |module: &&ModuleChange| {
            let layers = layers.as_ref();
            let layer = module.layer;
            layer.is_none_or(|layer| super::is_selected(layers, layer))
        };
        let mut modules: Vec<_> = adapter.modules.iter().filter(is_selected).collect();
        let ratio = |module: &ModuleChange| module.ratio.unwrap_or(f64::INFINITY);
        modules.sort_by(|a, b| ratio(b).total_cmp(&ratio(a)));
        let Some(first) = modules.first() else {
            return;
        };
        let text = format!(
            "what it adds to each layer's output there, relative to the base layer's x W + b (rank {}, scale {}):",
            first.rank, first.scale
        );
        self.wrap("    ", &text, "2");
        let (large, small) = modules.split_at(modules.len().min(MAX_PARTS));
        for module in large {
            let share = module.ratio.map_or_else(
                || "the base layer's output is 0".to_string(),
                |ratio| format!("{:>6.1} %", 100.0 * ratio),
            );
            self.line(&format!("    {:<34}{share}", module.module));
        }
        if !small.is_empty() {
            let rest = count_of(small.len(), "layer");
            self.line(&format!("    and {rest} with a smaller share"));
        }
    }
}

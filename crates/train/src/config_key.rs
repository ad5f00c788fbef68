//! Finds the key of a TOML text at a place in it.

use toml::de::{DeTable, DeValue};

/// The key, with its sections, at the byte `offset` of a TOML text.
pub(crate) fn key_at(text: &str, offset: usize) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let mut parts = Vec::new();
    find_key(document.get_ref(), offset, &mut parts).then(|| parts.join("."))
}

/// Whether the byte `offset` is within `table`. Appends the keys that lead to it to `parts`.
fn find_key(table: &DeTable<'_>, offset: usize, parts: &mut Vec<String>) -> bool {
    table.iter().any(|(key, value)| {
        parts.push(key.get_ref().to_string());
        let found = find_in_value(value.get_ref(), offset, parts)
            || key.span().contains(&offset)
            || value.span().contains(&offset);
        if !found {
            parts.pop();
        }
        found
    })
}

/// Like [`find_key`], within the tables of a value.
fn find_in_value(value: &DeValue<'_>, offset: usize, parts: &mut Vec<String>) -> bool {
    match value {
        DeValue::Table(table) => find_key(table, offset, parts),
        DeValue::Array(items) => items
            .iter()
            .any(|item| find_in_value(item.get_ref(), offset, parts)),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::parse_config;

    #[test]
    fn keys_are_found_by_their_place_in_the_text() {
        let text = "name = 1\n[model]\n# x\nd_model = 'a'\n\n[data.split]\nby = 3\n[train]\nx = { steps = 1, y = 'b' }\n";
        for (value, key) in [
            ("1\n[model", "name"),
            ("'a'", "model.d_model"),
            ("3\n", "data.split.by"),
            ("1, y", "train.x.steps"),
            ("'b'", "train.x.y"),
        ] {
            let offset = text.find(value).unwrap();
            assert_eq!(key_at(text, offset).as_deref(), Some(key));
        }
    }

    #[test]
    fn text_within_values_is_neither_section_nor_key() {
        let texts = [
            "",
            "prompts = [\n  '[train]',\n  'a = b',\n]\n",
            "prompts = [\n  [1],\n  # [model]\n  # x = 1\n]\n",
            "prompts = [ # [train]\n'x', ] # y = 1\n",
            "prompt_template = \"\"\"\n[train]\nsteps = 3\n\"\"\"\n",
            "prompt_template = '''\n[[train]]\nsteps = 3\n'''\n",
            "prompt_template = \"a = \\\" [b] = {c = 1}\"\n",
            "\"a = b\" = 1\n'[c]' = 2\n",
            "# [train]\n# steps = 1\n",
            "x = [{ a = 1 }, { b = [2] }]\n",
        ];
        for text in texts {
            for (value, key) in [
                ("every = 'often'", "samples.every"),
                ("a.b = 'often'", "samples.a.b"),
            ] {
                let text = format!("name = 'x'\n[samples]\n{text}{value}\n[other]\n{text}");
                let offset = text.find("'often'").unwrap();
                assert_eq!(key_at(&text, offset).as_deref(), Some(key), "{text}");
            }
        }
        for (text, value, key) in [
            (
                "[samples]\nprompts = [\n'[train]',\n'a = b',\n3]\n",
                "3]",
                "samples.prompts",
            ),
            ("[a]\nx = [{ b = 1 }, { c = 7 }]\n", "7", "a.x.c"),
            ("[[a]]\nx = 1\n[[a]]\nx = 7\n", "7", "a.x"),
            ("[a.b]\nx = 7\n[a]\ny = 8\n", "7", "a.b.x"),
            ("[a.b]\nx = 7\n[a]\ny = 8\n", "8", "a.y"),
            ("[a.b]\nx = 7\n[a]\ny = 8\n", "b]", "a.b"),
        ] {
            let offset = text.find(value).unwrap();
            assert_eq!(key_at(text, offset).as_deref(), Some(key), "{text}");
        }
        let text = "[samples]\nprompts = [\n  '[train]',\n  'a = b',\n]\nmax_tokens = 'many'\n";
        let error = parse_config(text, Path::new("x.toml"), &[]).unwrap_err();
        let message = error.to_string();
        let problem = "x.toml:6: samples.max_tokens must be a whole number";
        assert!(message.starts_with(problem), "{message}");
    }
}

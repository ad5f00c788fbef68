//! Edits of `explain --what-if`.

use nextword_explain::{AttentionKind, Edit, Explanation};

use crate::exit;

/// The edits without a value.
const PARTS: [(&str, Edit); 3] = [
    ("no-residual", Edit::NoResidual),
    ("no-positions", Edit::NoPositions),
    ("no-mask", Edit::NoMask),
];

/// The attention of encoder-decoder models besides that of the decoder, before LAYER.HEAD.
const ATTENTION: [(&str, AttentionKind); 2] = [
    ("encoder.", AttentionKind::Encoder),
    ("cross.", AttentionKind::Cross),
];

/// Vocabularies are searched for a similar token up to this size.
const MAX_SEARCHED: usize = 100_000;

/// Parses an edit: `head=0.1`, `token=2:is`, `embedding=what.0:1.5`, `no-mask`.
pub(super) fn parse_edit(text: &str, explanation: &Explanation<'_>) -> anyhow::Result<Edit> {
    let config = &explanation.trace.config;
    let token_id = |token: &str| {
        let id = explanation.explainer.token_id(token);
        id.ok_or_else(|| {
            let ids = 0..u32::try_from(config.vocab_size.min(MAX_SEARCHED)).unwrap_or(0);
            let texts: Vec<String> = ids.map(|id| explanation.explainer.token_text(id)).collect();
            let hint = similar(token, texts.iter().map(String::as_str)).map_or_else(
                || "use one of the tokens in the vocabulary".to_string(),
                |text| format!("did you mean `{text}`?"),
            );
            format!("`{token}` is not a single token of the vocabulary; hint: {hint}")
        })
    };
    let head = HeadExample {
        layers: config.n_layers,
        heads: config.n_heads,
    };
    parse(text, &token_id, head)
        .map_err(|problem| exit::usage(format!("--what-if '{text}': {problem}")))
}

/// The last layer and head of a model, for the example of an edit.
#[derive(Clone, Copy)]
struct HeadExample {
    layers: usize,
    heads: usize,
}

impl HeadExample {
    fn hint(self) -> String {
        let (layer, head) = (self.layers.saturating_sub(1), self.heads.saturating_sub(1));
        format!(
            "write head=LAYER.HEAD, both counted from 0, e.g. head={layer}.{head}, which the page calls head {} of \
             layer {}",
            head + 1,
            layer + 1
        )
    }
}

/// Parses an edit; the error is the problem with its hint.
fn parse(
    text: &str,
    token_id: &dyn Fn(&str) -> Result<u32, String>,
    head: HeadExample,
) -> Result<Edit, String> {
    let text = text.trim();
    if let Some((_, edit)) = PARTS.iter().find(|(name, _)| *name == text) {
        return Ok(edit.clone());
    }
    let Some((kind, value)) = text.split_once('=') else {
        return Err(unknown_kind(text));
    };
    match kind.trim() {
        "head" => {
            let (attention, place) = ATTENTION
                .iter()
                .find_map(|(name, kind)| Some((*kind, value.trim().strip_prefix(*name)?)))
                .unwrap_or((AttentionKind::SelfAttention, value));
            let parsed = place.split_once('.').and_then(|(layer, head)| {
                Some((layer.trim().parse().ok()?, head.trim().parse().ok()?))
            });
            match parsed {
                Some((layer, head)) => Ok(Edit::HeadOff {
                    layer,
                    head,
                    attention,
                }),
                None => Err(format!("`{value}` names no head; hint: {}", head.hint())),
            }
        }
        "token" => {
            let Some((position, token)) = value.split_once(':') else {
                return Err(format!(
                    "`{value}` has no `:`; hint: write token=POSITION:TEXT, e.g. token=0:TEXT"
                ));
            };
            let Ok(position) = position.trim().parse() else {
                return Err(format!(
                    "`{}` is not a position; hint: positions are counted from 0, e.g. token=0:{token}",
                    position.trim()
                ));
            };
            let id = token_id(token)?;
            Ok(Edit::Token { position, id })
        }
        "adapter" => value.trim().parse().map_or_else(
            |_| {
                Err(format!(
                    "`{value}` is not a number; hint: adapter=0 is the base model, adapter=0.5 half of what the adapter \
                     adds, adapter=1 all of it"
                ))
            },
            |scale| Ok(Edit::Adapter { scale }),
        ),
        "embedding" => {
            const HINT: &str = "hint: write embedding=TOKEN.ELEMENT:VALUE, elements counted from 0, e.g. \
                                embedding=TOKEN.0:1.5";
            let parts = value
                .rsplit_once(':')
                .and_then(|(element, value)| Some((element.rsplit_once('.')?, value)));
            let Some(((token, element), value)) = parts else {
                return Err(format!("`{value}` names no element and value; {HINT}"));
            };
            let Ok(dim) = element.trim().parse() else {
                return Err(format!("`{element}` is not an element; {HINT}"));
            };
            let Ok(value) = value.trim().parse() else {
                return Err(format!("`{value}` is not a number; {HINT}"));
            };
            let id = token_id(token)?;
            Ok(Edit::Embedding { id, dim, value })
        }
        kind => Err(unknown_kind(kind)),
    }
}

/// The error of an edit that does not exist, with the one that was probably meant.
fn unknown_kind(kind: &str) -> String {
    let names = PARTS.iter().map(|(name, _)| *name);
    let all: Vec<&str> = ["head", "token", "embedding", "adapter"]
        .into_iter()
        .chain(names)
        .collect();
    let hint = similar(kind, all.iter().copied()).map_or_else(
        || format!("edits are {}", all.join(", ")),
        |name| format!("did you mean `{name}`?"),
    );
    format!("`{kind}` is not an edit; hint: {hint}")
}

/// The one of `names` that shares the longest beginning with `text`, of at least three characters.
fn similar<'a>(text: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let normal = |text: &str| text.to_lowercase().replace(['_', ' ', '-'], "");
    let given = normal(text);
    let common = |name: &str| {
        let name = normal(name);
        let shared = name.chars().zip(given.chars());
        shared.take_while(|(a, b)| a == b).count()
    };
    let counted = names.map(|name| (common(name), name));
    let found = counted.filter(|(count, _)| *count >= 3);
    found.max_by_key(|(count, _)| *count).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_here(text: &str) -> Result<Edit, String> {
        let id = |token: &str| match token {
            "awesome" => Ok(4),
            other => Err(format!("`{other}` is not a single token of the vocabulary")),
        };
        let head = HeadExample {
            layers: 1,
            heads: 1,
        };
        parse(text, &id, head)
    }

    fn head_off(attention: AttentionKind, layer: usize, head: usize) -> Edit {
        Edit::HeadOff {
            layer,
            head,
            attention,
        }
    }

    #[test]
    fn edits_are_read() {
        for (text, edit) in [
            ("no-mask", Edit::NoMask),
            (" no-positions ", Edit::NoPositions),
            ("no-residual", Edit::NoResidual),
            ("head=0.1", head_off(AttentionKind::SelfAttention, 0, 1)),
            ("head = 2 . 3", head_off(AttentionKind::SelfAttention, 2, 3)),
            ("head=encoder.1.0", head_off(AttentionKind::Encoder, 1, 0)),
            ("head=cross.0.2", head_off(AttentionKind::Cross, 0, 2)),
            ("token=2:awesome", Edit::Token { position: 2, id: 4 }),
            ("adapter=0.5", Edit::Adapter { scale: 0.5 }),
            (
                "embedding=awesome.0:1.5",
                Edit::Embedding {
                    id: 4,
                    dim: 0,
                    value: 1.5,
                },
            ),
            (
                "embedding=awesome.1:-2",
                Edit::Embedding {
                    id: 4,
                    dim: 1,
                    value: -2.0,
                },
            ),
        ] {
            assert_eq!(parse_here(text), Ok(edit), "{text}");
        }
    }

    #[test]
    fn the_error_of_an_edit_names_what_is_wrong_with_it() {
        for (text, problem) in [
            ("token=0:awesom", "`awesom` is not a single token"),
            ("embedding=nice.0:1", "`nice` is not a single token"),
            ("no-position", "did you mean `no-positions`?"),
            ("no_mask", "did you mean `no-mask`?"),
            ("no-residuals", "did you mean `no-residual`?"),
            ("heads=0.0", "did you mean `head`?"),
            ("tokens=0:awesome", "did you mean `token`?"),
            ("embed=awesome.0:1", "did you mean `embedding`?"),
            (
                "x",
                "edits are head, token, embedding, adapter, no-residual",
            ),
            ("", "edits are head"),
            (
                "head=1",
                "e.g. head=0.0, which the page calls head 1 of layer 1",
            ),
            ("adapter=half", "adapter=0 is the base model"),
            ("adapt=0", "did you mean `adapter`?"),
            ("head=a.b", "`a.b` names no head"),
            ("token=awesome", "has no `:`"),
            ("token=first:awesome", "`first` is not a position"),
            ("embedding=awesome", "names no element and value"),
            ("embedding=awesome.x:1", "`x` is not an element"),
            ("embedding=awesome.0:much", "`much` is not a number"),
        ] {
            let error = parse_here(text).map_err(|error| error.contains(problem));
            assert_eq!(error, Err(true), "{text}: {:?}", parse_here(text));
        }
    }
}

use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_model::{InitConfig, ModelConfig, Position, presets};

use super::*;
use crate::SamplingConfig;

fn tokenizer(kind: TokenizerKind, text: &str, eos: &str) -> Arc<dyn Tokenizer> {
    let config = TokenizerConfig {
        kind,
        eos: eos.to_owned(),
        unk: String::new(),
        ..TokenizerConfig::default()
    };
    build_tokenizer(&config, std::iter::once(Ok(text.to_owned()))).unwrap()
}

fn model_for(tokenizer: &dyn Tokenizer) -> Transformer {
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        context_length: 24,
        n_layers: 1,
        n_heads: 2,
        d_model: 8,
        init: InitConfig {
            std: 0.5,
            scale_output: false,
        },
        ..ModelConfig::default()
    };
    config.init(&Device::flex(), 1).unwrap()
}

fn generator(kind: TokenizerKind, text: &str, eos: &str) -> TextGenerator {
    let tokenizer = tokenizer(kind, text, eos);
    TextGenerator::new(model_for(&*tokenizer), tokenizer, ModelCard::default()).unwrap()
}

/// A model that repeats these ids forever: each token has exactly one successor.
fn reciting(text: &str, kind: TokenizerKind, recited: &[u32], eos: &str) -> TextGenerator {
    let tokenizer = tokenizer(kind, text, eos);
    let vocab = tokenizer.vocab_size();
    let config = ModelConfig {
        context_length: 64,
        d_model: vocab,
        position: Position::None,
        ..presets::statquest(vocab)
    };
    let mut next = vec![0.0_f32; vocab * vocab];
    for (i, id) in recited.iter().enumerate() {
        next[*id as usize * vocab + recited[(i + 1) % recited.len()] as usize] = 100.0;
    }
    let mut model = config.init(&Device::flex(), 0).unwrap();
    let device = Device::flex();
    // One-hot embeddings, no positions, no attention: the output layer is the table of successors.
    let eye = burn::tensor::Tensor::eye(vocab, &device);
    model.token_embedding.weight = burn::module::Param::from_tensor(eye);
    let table = burn::tensor::TensorData::new(next, [vocab, vocab]);
    let table = burn::tensor::Tensor::from_data(table, &device);
    model.head.weight = Some(burn::module::Param::from_tensor(table));
    model.blocks.clear();
    TextGenerator::new(model, tokenizer, ModelCard::default()).unwrap()
}

fn ids(generator: &TextGenerator, text: &str) -> Vec<u32> {
    generator.tokenizer.encode(text).ids
}

fn greedy(max_tokens: usize) -> TextOptions {
    TextOptions {
        sampling: SamplingConfig::greedy(),
        max_tokens,
        ..TextOptions::default()
    }
}

fn collect(
    generator: &TextGenerator,
    prompts: &[&str],
    options: &TextOptions,
) -> (Vec<Completion>, Vec<String>) {
    let mut deltas = vec![String::new(); prompts.len()];
    let completions = generator.generate(prompts, options, |row, delta| {
        deltas[row].push_str(delta);
        ControlFlow::Continue(())
    });
    (completions.unwrap(), deltas)
}

#[test]
fn deltas_add_up_to_the_decoded_text() {
    for kind in [TokenizerKind::Char, TokenizerKind::Byte, TokenizerKind::Bpe] {
        let generator = generator(kind, "the quick brown fox é 🦀 jumps", "<EOS>");
        let options = TextOptions {
            max_tokens: 60,
            ..TextOptions::default()
        };
        let (completions, deltas) = collect(&generator, &["the", "", "fox é"], &options);
        for (completion, deltas) in completions.iter().zip(&deltas) {
            assert_eq!(&completion.text, deltas);
            assert_eq!(
                completion.text,
                generator.tokenizer.decode(&completion.ids),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_stop_string_ends_the_text_and_is_not_emitted() {
    let generator = reciting("abcdefg", TokenizerKind::Char, &[0, 1, 2, 3, 4, 5, 6], "");
    let options = |stop: &str| TextOptions {
        stop: vec![stop.to_owned()],
        ..greedy(20)
    };
    let (completions, deltas) = collect(&generator, &["a"], &options("efg"));
    assert_eq!(
        (completions[0].text.as_str(), deltas[0].as_str()),
        ("bcd", "bcd")
    );
    assert_eq!(completions[0].finish, FinishReason::Stop("efg".to_owned()));
    // A partial stop string is emitted at the end, here at the token limit.
    let limited = TextOptions {
        max_tokens: 5,
        ..options("efx")
    };
    let (completions, deltas) = collect(&generator, &["a"], &limited);
    assert_eq!(completions[0].text, "bcdef");
    assert_eq!(deltas[0], "bcdef");
    assert_eq!(completions[0].finish, FinishReason::Length);
    // Each token is reported when it is generated, also while its text is held back, so that it can be timed.
    let mut calls = Vec::new();
    let completions = generator.generate(&["a"], &limited, |_, delta| {
        calls.push(delta.to_owned());
        ControlFlow::Continue(())
    });
    assert_eq!(completions.unwrap()[0].ids.len(), 5);
    assert_eq!(calls, ["b", "c", "d", "", "", "ef"]);
    // The token limit is reached with the stop string; the stop string is the finish reason.
    let (completions, _) = collect(
        &generator,
        &["a"],
        &TextOptions {
            max_tokens: 6,
            ..options("efg")
        },
    );
    assert_eq!(completions[0].finish, FinishReason::Stop("efg".to_owned()));
}

#[test]
fn eos_ends_the_completion_without_text() {
    let text = "what is awesome statquest";
    let names = tokenizer(TokenizerKind::Word, text, "<EOS>");
    let recited = names.encode("what is <EOS> awesome").ids;
    let generator = reciting(text, TokenizerKind::Word, &recited, "<EOS>");
    let (completions, _) = collect(&generator, &["what"], &greedy(9));
    assert_eq!(completions[0].text, " is", "it continues the prompt");
    assert_eq!(completions[0].ids, ids(&generator, "is <EOS>"));
    assert_eq!(completions[0].finish, FinishReason::Eos);
    let past_eos = TextOptions {
        stop_at_eos: false,
        ..greedy(3)
    };
    assert_eq!(
        collect(&generator, &["what"], &past_eos).0[0].text,
        " is awesome"
    );
}

#[test]
fn the_prompt_template_is_applied() {
    let text = "what is awesome statquest";
    let names = tokenizer(TokenizerKind::Word, text, "<EOS>");
    let recited = names.encode("<EOS> awesome").ids;
    let mut generator = reciting(text, TokenizerKind::Word, &recited, "<EOS>");
    generator.card.prompt_template = Some("{prompt} <EOS>".to_owned());
    let (completions, _) = collect(&generator, &["what is statquest"], &greedy(5));
    assert_eq!(
        completions[0].prompt_ids,
        ids(&generator, "what is statquest <EOS>")
    );
    assert_eq!(
        (completions[0].text.as_str(), &completions[0].finish),
        ("awesome", &FinishReason::Eos)
    );
    // The template of the options overrides that of the card.
    let plain = TextOptions {
        prompt_template: Some("{prompt}".to_owned()),
        ..greedy(1)
    };
    assert_eq!(
        collect(&generator, &["what is"], &plain).0[0].prompt_ids,
        ids(&generator, "what is")
    );
    let wrong = TextOptions {
        prompt_template: Some("prompt".to_owned()),
        ..greedy(1)
    };
    let error = generator.generate(&["x"], &wrong, |_, _| ControlFlow::Continue(()));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("prompt_template: `prompt` does not contain {prompt}")
    );
}

#[test]
fn an_empty_prompt_starts_from_eos_newline_or_id_0() {
    for (eos, text, first) in [
        ("<EOS>", "ab\n", "<EOS>"),
        ("", "ab\n", "\n"),
        ("", "ab", "a"),
    ] {
        let generator = generator(TokenizerKind::Char, text, eos);
        let (completions, _) = collect(&generator, &[""], &greedy(1));
        assert_eq!(
            completions[0].prompt_ids,
            ids(&generator, first),
            "{eos:?} {text:?}"
        );
    }
}

#[test]
fn unknown_prompt_characters_are_reported() {
    let generator = generator(TokenizerKind::Char, "abc", "");
    let (completions, _) = collect(&generator, &["aπbΩ", "abc"], &greedy(2));
    assert_eq!(completions[0].unknown, ["π", "Ω"]);
    assert_eq!(completions[0].prompt_ids, ids(&generator, "ab"));
    assert_eq!(completions[1].unknown, Vec::<String>::new());
}

#[test]
fn breaking_cancels_only_that_completion() {
    let generator = reciting("abcdefg", TokenizerKind::Char, &[0, 1, 2, 3, 4, 5, 6], "");
    let completions = generator.generate(&["a", "a"], &greedy(6), |row, delta| {
        if row == 0 && delta == "c" {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    let completions = completions.unwrap();
    assert_eq!(
        (completions[0].text.as_str(), &completions[0].finish),
        ("bc", &FinishReason::Cancelled)
    );
    assert_eq!(
        (completions[1].text.as_str(), &completions[1].finish),
        ("bcdefg", &FinishReason::Length)
    );
}

#[test]
fn a_saved_model_generates_the_same_and_needs_its_tokenizer() {
    let original = generator(TokenizerKind::Char, "hello world", "<EOS>");
    let folder = tempfile::tempdir().unwrap();
    let json = original.tokenizer.to_json().unwrap();
    ModelDir::save(folder.path(), &original.model, &json, &original.card).unwrap();
    let model_dir = ModelDir::open(folder.path()).unwrap();
    let loaded = TextGenerator::open(&model_dir, &Device::flex()).unwrap();
    let options = TextOptions {
        max_tokens: 30,
        ..TextOptions::default()
    };
    assert_eq!(
        collect(&loaded, &["hello"], &options),
        collect(&original, &["hello"], &options)
    );

    let other = tokenizer(TokenizerKind::Byte, "", "<EOS>")
        .to_json()
        .unwrap();
    std::fs::write(model_dir.tokenizer_path(), other).unwrap();
    let message = TextGenerator::open(&model_dir, &Device::flex())
        .unwrap_err()
        .to_string();
    for part in [
        "tokenizer.json has 257 tokens",
        "config.json has a vocab_size of 9",
        "another model",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn bos_starts_a_prompt_and_the_cards_eos_ends_a_completion() {
    let recited: Vec<u32> = (0..3).collect();
    let mut generator = reciting("abc", TokenizerKind::Char, &recited, "<EOS>");
    generator.card.special.bos_id = Some(2);
    generator.card.special.eos_ids = vec![1];
    let completions =
        generator.generate(&["a", "ca"], &greedy(5), |_, _| ControlFlow::Continue(()));
    let completions = completions.unwrap();
    assert_eq!(completions[0].prompt_ids, [2, 0]);
    assert_eq!(completions[1].prompt_ids, [2, 0], "it was there already");
    assert_eq!(
        (completions[0].ids.as_slice(), &completions[0].finish),
        (&[1][..], &FinishReason::Eos)
    );
}

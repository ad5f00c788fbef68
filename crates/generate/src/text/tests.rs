use nextword_data::{TokenizerConfig, TokenizerKind, build_tokenizer};
use nextword_model::{InitConfig, ModelConfig, Position, presets};

use super::*;

fn tokenizer(kind: TokenizerKind, text: &str, eos: &str) -> Arc<dyn Tokenizer> {
    let config = TokenizerConfig {
        kind,
        eos: eos.to_owned(),
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
    TextGenerator::new(model_for(&*tokenizer), tokenizer, Card::default()).unwrap()
}

/// Always these ids, over and over: each token is the only one that the last can be followed by.
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
    TextGenerator::new(model, tokenizer, Card::default()).unwrap()
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
) -> (Vec<Answer>, Vec<String>) {
    let mut pieces = vec![String::new(); prompts.len()];
    let answers = generator.generate(prompts, options, |row, piece| {
        pieces[row].push_str(piece);
        ControlFlow::Continue(())
    });
    (answers.unwrap(), pieces)
}

#[test]
fn the_pieces_joined_are_the_text_and_the_text_is_that_of_the_ids() {
    for kind in [TokenizerKind::Char, TokenizerKind::Byte, TokenizerKind::Bpe] {
        let generator = generator(kind, "the quick brown fox é 🦀 jumps", "<EOS>");
        let options = TextOptions {
            max_tokens: 60,
            ..TextOptions::default()
        };
        let (answers, pieces) = collect(&generator, &["the", "", "fox é"], &options);
        for (answer, pieces) in answers.iter().zip(&pieces) {
            assert_eq!(&answer.text, pieces);
            assert_eq!(
                answer.text,
                generator.tokenizer.decode(&answer.ids),
                "{kind:?}"
            );
        }
    }
}

#[test]
fn a_stop_string_ends_the_answer_before_it_and_is_never_shown() {
    let generator = reciting("abcdefg", TokenizerKind::Char, &[0, 1, 2, 3, 4, 5, 6], "");
    let options = |stop: &str| TextOptions {
        stop: vec![stop.to_owned()],
        ..greedy(20)
    };
    let (answers, pieces) = collect(&generator, &["a"], &options("efg"));
    assert_eq!(
        (answers[0].text.as_str(), pieces[0].as_str()),
        ("bcd", "bcd")
    );
    assert_eq!(answers[0].finish, FinishReason::Stop("efg".to_owned()));
    // What only looks like a stop string comes out in the end, here at the token limit.
    let limited = TextOptions {
        max_tokens: 5,
        ..options("efx")
    };
    let (answers, pieces) = collect(&generator, &["a"], &limited);
    assert_eq!(answers[0].text, "bcdef");
    assert_eq!(pieces[0], "bcdef");
    assert_eq!(answers[0].finish, FinishReason::Length);
    // The limit falls on the token that completes the stop string: the stop string is the reason.
    let (answers, _) = collect(
        &generator,
        &["a"],
        &TextOptions {
            max_tokens: 6,
            ..options("efg")
        },
    );
    assert_eq!(answers[0].finish, FinishReason::Stop("efg".to_owned()));
}

#[test]
fn eos_stops_and_is_no_text() {
    let text = "what is awesome statquest";
    let names = tokenizer(TokenizerKind::Word, text, "<EOS>");
    let recited = names.encode("what is <EOS> awesome").ids;
    let generator = reciting(text, TokenizerKind::Word, &recited, "<EOS>");
    let (answers, _) = collect(&generator, &["what"], &greedy(9));
    assert_eq!(answers[0].text, " is", "it continues the prompt");
    assert_eq!(answers[0].ids, ids(&generator, "is <EOS>"));
    assert_eq!(answers[0].finish, FinishReason::Eos);
    let on = TextOptions {
        stop_at_eos: false,
        ..greedy(3)
    };
    assert_eq!(collect(&generator, &["what"], &on).0[0].text, " is awesome");
}

#[test]
fn the_template_puts_the_prompt_and_the_answer_is_a_text_of_its_own() {
    let text = "what is awesome statquest";
    let names = tokenizer(TokenizerKind::Word, text, "<EOS>");
    let recited = names.encode("<EOS> awesome").ids;
    let mut generator = reciting(text, TokenizerKind::Word, &recited, "<EOS>");
    generator.card.prompt_template = Some("{prompt} <EOS>".to_owned());
    let (answers, _) = collect(&generator, &["what is statquest"], &greedy(5));
    assert_eq!(
        answers[0].prompt_ids,
        ids(&generator, "what is statquest <EOS>")
    );
    assert_eq!(
        (answers[0].text.as_str(), &answers[0].finish),
        ("awesome", &FinishReason::Eos)
    );
    // The options' template comes before the card's.
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
            .starts_with("prompt_template: `prompt` has no {prompt}")
    );
}

#[test]
fn an_empty_prompt_starts_from_eos_else_a_line_break_else_id_0() {
    for (eos, text, first) in [
        ("<EOS>", "ab\n", "<EOS>"),
        ("", "ab\n", "\n"),
        ("", "ab", "a"),
    ] {
        let generator = generator(TokenizerKind::Char, text, eos);
        let (answers, _) = collect(&generator, &[""], &greedy(1));
        assert_eq!(
            answers[0].prompt_ids,
            ids(&generator, first),
            "{eos:?} {text:?}"
        );
    }
}

#[test]
fn unknown_characters_of_a_prompt_are_reported() {
    let generator = generator(TokenizerKind::Char, "abc", "");
    let (answers, _) = collect(&generator, &["aπbΩ", "abc"], &greedy(2));
    assert_eq!(answers[0].unknown, ["π", "Ω"]);
    assert_eq!(answers[0].prompt_ids, ids(&generator, "ab"));
    assert_eq!(answers[1].unknown, Vec::<String>::new());
}

#[test]
fn breaking_cancels_that_answer_alone() {
    let generator = reciting("abcdefg", TokenizerKind::Char, &[0, 1, 2, 3, 4, 5, 6], "");
    let answers = generator.generate(&["a", "a"], &greedy(6), |row, piece| {
        if row == 0 && piece == "c" {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    let answers = answers.unwrap();
    assert_eq!(
        (answers[0].text.as_str(), &answers[0].finish),
        ("bc", &FinishReason::Cancelled)
    );
    assert_eq!(
        (answers[1].text.as_str(), &answers[1].finish),
        ("bcdefg", &FinishReason::Length)
    );
}

#[test]
fn a_record_generates_what_its_model_did_and_refuses_a_foreign_tokenizer() {
    let made = generator(TokenizerKind::Char, "hello world", "<EOS>");
    let folder = tempfile::tempdir().unwrap();
    let json = made.tokenizer.to_json().unwrap();
    Record::save(folder.path(), &made.model, &json, &made.card).unwrap();
    let record = Record::open(folder.path()).unwrap();
    let loaded = TextGenerator::open(&record, &Device::flex()).unwrap();
    let options = TextOptions {
        max_tokens: 30,
        ..TextOptions::default()
    };
    assert_eq!(
        collect(&loaded, &["hello"], &options),
        collect(&made, &["hello"], &options)
    );

    let other = tokenizer(TokenizerKind::Byte, "", "<EOS>")
        .to_json()
        .unwrap();
    std::fs::write(record.tokenizer_path(), other).unwrap();
    let message = TextGenerator::open(&record, &Device::flex())
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
fn a_card_s_first_and_last_tokens_are_put_before_and_end_an_answer() {
    let recited: Vec<u32> = (0..3).collect();
    let mut generator = reciting("abc", TokenizerKind::Char, &recited, "<EOS>");
    generator.card.bos_id = Some(2);
    generator.card.eos_ids = vec![1];
    let answers = generator.generate(&["a", "ca"], &greedy(5), |_, _| ControlFlow::Continue(()));
    let answers = answers.unwrap();
    assert_eq!(answers[0].prompt_ids, [2, 0]);
    assert_eq!(answers[1].prompt_ids, [2, 0], "it was there already");
    assert_eq!(
        (answers[0].ids.as_slice(), &answers[0].finish),
        (&[1][..], &FinishReason::Eos)
    );
}

use burn::tensor::Device;
use nextword_data::{
    DataError, Encoding, Specials, Tokenizer, TokenizerConfig, TokenizerKind, build_tokenizer,
};
use nextword_generate::{Overflow, SamplingConfig};
use nextword_model::{Card, ModelConfig};

use super::*;

/// The bytes' tokenizer, but for a token that must not be shown to it.
#[derive(Debug)]
struct Trap(Arc<dyn Tokenizer>);

const TRAPPED: u32 = 7;

impl Tokenizer for Trap {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn specials(&self) -> Specials {
        self.0.specials()
    }

    fn encode(&self, text: &str) -> Encoding {
        self.0.encode(text)
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.0.piece(id)
    }

    fn token(&self, id: u32) -> Option<String> {
        self.0.token(id)
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.0.decode(ids)
    }

    fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        assert_ne!(id, TRAPPED, "as a test wants it");
        self.0.bytes(id)
    }

    fn to_json(&self) -> Result<String, DataError> {
        self.0.to_json()
    }
}

fn engine(slots: usize) -> Engine {
    let config = TokenizerConfig {
        kind: TokenizerKind::Byte,
        ..TokenizerConfig::default()
    };
    let tokenizer = build_tokenizer(&config, std::iter::empty()).unwrap();
    let model = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        context_length: 64,
        n_layers: 1,
        n_heads: 2,
        d_model: 16,
        ..ModelConfig::default()
    };
    let model = model.init(&Device::flex(), 3).unwrap();
    let generator = TextGenerator::new(model, Arc::new(Trap(tokenizer)), Card::default()).unwrap();
    let options = BatchOptions {
        slots,
        ..BatchOptions::default()
    };
    Engine::start(generator, options, 8, Arc::new(Metrics::default())).unwrap()
}

fn sequence(prompt: &[u32], max_tokens: usize) -> Sequence {
    let mut sampling = SamplingConfig::default();
    sampling.logit_bias.insert(TRAPPED, -100.0);
    Sequence {
        request: BatchRequest {
            prompt: prompt.to_vec(),
            sampling,
            max_tokens,
            stop_ids: Vec::new(),
            overflow: Overflow::Slide,
            first_id: None,
            sequence: 0,
            top: Some(0),
            score_prompt: false,
        },
        stop: Vec::new(),
    }
}

/// Tokens of an answer, or what it failed with.
fn read(updates: &mut Updates) -> Result<usize, ApiError> {
    while let Some(update) = updates.blocking_recv() {
        match update.kind {
            UpdateKind::End { tokens, .. } => return Ok(tokens),
            UpdateKind::Failed(error) => return Err(error),
            UpdateKind::Prompt(_) | UpdateKind::Piece(_) => {}
        }
    }
    Err(ApiError::given_up())
}

#[test]
fn a_panic_while_a_request_is_taken_in_costs_that_request_alone() {
    let engine = engine(2);
    let mut bad = engine
        .submit(vec![sequence(&[TRAPPED], 3), sequence(&[2], 3)])
        .unwrap();
    assert_eq!(read(&mut bad), Err(ApiError::given_up()));
    for _ in 0..3 {
        let mut good = engine.submit(vec![sequence(&[1], 5)]).unwrap();
        assert_eq!(read(&mut good), Ok(5));
    }
    assert_eq!((engine.queued(), engine.check()), (0, Ok(())));
}

#[test]
fn without_its_thread_an_engine_says_so() {
    let (jobs, receiver) = jobs::channel();
    drop(receiver);
    let alive = Arc::new(AtomicBool::new(true));
    let thread = std::thread::spawn({
        let alive = Alive(alive.clone());
        move || {
            let _falls = alive;
            std::panic::panic_any("as a test wants it");
        }
    });
    assert!(thread.join().is_err());
    let engine = Engine {
        jobs,
        queued: Arc::default(),
        limit: 1,
        slots: 1,
        abort: Arc::default(),
        alive,
        metrics: Arc::default(),
    };
    for _ in 0..3 {
        let error = engine.submit(vec![sequence(&[1], 1)]).unwrap_err();
        assert_eq!(error.status.as_u16(), 503);
    }
    assert!(engine.check().is_err());
}

#[test]
fn an_answer_that_nobody_reads_waits_and_holds_up_no_other() {
    let engine = engine(2);
    let mut slow = engine.submit(vec![sequence(&[1], 3000)]).unwrap();
    for _ in 0..20 {
        let mut other = engine.submit(vec![sequence(&[2], 100)]).unwrap();
        assert_eq!(read(&mut other), Ok(100));
    }
    let bound = BACKLOG + PER_STEP;
    assert!(slow.len() <= bound, "{} updates wait", slow.len());
    assert!(engine.metrics.running.get() > 0, "it has not ended");
    assert_eq!(read(&mut slow), Ok(3000));
}

#[test]
fn an_answer_that_nobody_reads_gives_its_slot_to_others_after_a_while() {
    let engine = engine(1);
    let mut slow = engine.submit(vec![sequence(&[1], 3000)]).unwrap();
    let mut other = engine.submit(vec![sequence(&[2], 4)]).unwrap();
    assert_eq!(read(&mut other), Ok(4));
    assert_eq!(read(&mut slow), Err(ApiError::unread()));
}

#[test]
fn answers_that_are_broken_off_by_the_end_are_unavailable_all_of_them() {
    let engine = engine(1);
    let many = vec![sequence(&[1], 60_000), sequence(&[1], 60_000)];
    let mut running = engine.submit(many).unwrap();
    let mut waiting = engine.submit(vec![sequence(&[2], 4)]).unwrap();
    assert!(running.blocking_recv().is_some());
    engine.abort();
    for updates in [&mut running, &mut waiting] {
        let error = read(updates).unwrap_err();
        assert_eq!(error.status.as_u16(), 503, "{error:?}");
    }
}

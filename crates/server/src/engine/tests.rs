use nextword_data::{DataError, Encoding, SpecialTokens, Tokenizer};
use nextword_generate::{Overflow, SamplingConfig};

use super::*;
use crate::panics::test_log;
use crate::test_model::{byte_tokenizer, generator};

/// A byte tokenizer that panics on one token.
#[derive(Debug)]
struct PanickingTokenizer(Arc<dyn Tokenizer>);

const PANIC_TOKEN: u32 = 7;

impl Tokenizer for PanickingTokenizer {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn special_tokens(&self) -> SpecialTokens {
        self.0.special_tokens()
    }

    fn encode(&self, text: &str) -> Encoding {
        self.0.encode(text)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    fn token_text(&self, id: u32) -> Option<String> {
        self.0.token_text(id)
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.0.decode(ids)
    }

    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        assert_ne!(id, PANIC_TOKEN, "test panic");
        self.0.token_bytes(id)
    }

    fn with_roles(&self, eos: Option<u32>, pad: Option<u32>) -> Arc<dyn Tokenizer> {
        Arc::new(Self(self.0.with_roles(eos, pad)))
    }

    fn to_json(&self) -> Result<String, DataError> {
        self.0.to_json()
    }
}

fn engine(slots: usize) -> (Engine, EngineThread) {
    named_engine("test", slots)
}

fn named_engine(name: &str, slots: usize) -> (Engine, EngineThread) {
    let tokenizer = Arc::new(PanickingTokenizer(byte_tokenizer()));
    let generator = generator(tokenizer);
    let options = BatchOptions {
        slots,
        ..BatchOptions::default()
    };
    Engine::start(name, generator, options, 8).unwrap()
}

/// The model of [`engine`].
fn model() -> RequestedModel {
    RequestedModel {
        tokenizer: Arc::new(PanickingTokenizer(byte_tokenizer())),
        metrics: Arc::default(),
    }
}

fn sequence(prompt: &[u32], max_tokens: usize) -> Sequence {
    let mut sampling = SamplingConfig::default();
    sampling.logit_bias.insert(PANIC_TOKEN, -100.0);
    Sequence {
        request: BatchRequest {
            min_tokens: 0,
            prompt: prompt.to_vec(),
            sampling,
            max_tokens,
            stop_ids: Vec::new(),
            overflow: Overflow::Slide,
            bos_id: None,
            sequence: 0,
            top_logprobs: Some(0),
            score_prompt: false,
            adapter: None,
        },
        stop: Vec::new(),
    }
}

/// Number of tokens of the next completion to end, or the error it failed with.
fn wait_for_end(updates: &mut Updates) -> Result<usize, ApiError> {
    while let Some(update) = updates.blocking_recv() {
        match update.kind {
            UpdateKind::End { tokens, .. } => return Ok(tokens),
            UpdateKind::Failed(error) => return Err(error),
            UpdateKind::Prompt(_) | UpdateKind::Delta(_) => {}
        }
    }
    Err(ApiError::aborted())
}

#[test]
fn panic_during_admission_fails_only_that_request() {
    let (engine, _thread) = engine(2);
    let mut bad = engine
        .submit(
            vec![sequence(&[PANIC_TOKEN], 3), sequence(&[2], 3)],
            model(),
        )
        .unwrap();
    assert_eq!(wait_for_end(&mut bad), Err(ApiError::aborted()));
    for _ in 0..3 {
        let mut good = engine.submit(vec![sequence(&[1], 5)], model()).unwrap();
        assert_eq!(wait_for_end(&mut good), Ok(5));
    }
    assert_eq!((engine.queued(), engine.check_alive()), (0, Ok(())));
}

#[test]
fn engine_panic_is_logged_with_message_and_location() {
    test_log::init();
    let (engine, _thread) = named_engine("panicking", 1);
    let mut updates = engine
        .submit(vec![sequence(&[PANIC_TOKEN], 3)], model())
        .unwrap();
    assert!(wait_for_end(&mut updates).is_err());
    // The log is written just after the channel closes.
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut lines = Vec::new();
    while lines.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        lines = test_log::lines_with("the engine of model `panicking` panicked");
    }
    assert_eq!(lines.len(), 1);
    let (line, file) = (&lines[0], file!());
    assert!(
        line.contains(" ERROR ") && line.contains(&format!("panicked at {file}:")),
        "{line}"
    );
    assert!(line.contains("test panic"), "{line}");
}

#[test]
fn engine_without_thread_reports_unavailable() {
    let (messages, receiver) = jobs::channel();
    drop(receiver);
    let alive = Arc::new(AtomicBool::new(true));
    let thread = std::thread::spawn({
        let alive = AliveGuard(alive.clone());
        move || {
            let _alive = alive;
            std::panic::panic_any("test panic");
        }
    });
    assert!(thread.join().is_err());
    let engine = Engine {
        messages,
        queued: Arc::default(),
        max_queued: 1,
        slots: 1,
        updates_per_step: MAX_UPDATES_PER_STEP,
        aborted: Arc::default(),
        alive,
        metrics: Arc::default(),
    };
    for _ in 0..3 {
        let error = engine.submit(vec![sequence(&[1], 1)], model()).unwrap_err();
        assert_eq!(error.status.as_u16(), 503);
    }
    assert!(engine.check_alive().is_err());
}

#[test]
fn unread_completion_pauses_without_blocking_others() {
    let (engine, _thread) = engine(2);
    let of_slow = model();
    let slow = vec![sequence(&[1], 3000)];
    let mut slow = engine.submit(slow, of_slow.clone()).unwrap();
    for _ in 0..20 {
        let mut other = engine.submit(vec![sequence(&[2], 100)], model()).unwrap();
        assert_eq!(wait_for_end(&mut other), Ok(100));
    }
    let bound = CHANNEL_CAPACITY + MAX_UPDATES_PER_STEP;
    assert!(slow.len() <= bound, "{} unread updates", slow.len());
    let running = of_slow.metrics.running.get();
    assert!(running > 0, "it must not have ended");
    assert_eq!(wait_for_end(&mut slow), Ok(3000));
}

#[test]
fn unread_completion_times_out_and_frees_its_slot() {
    let (engine, _thread) = engine(1);
    let mut slow = engine.submit(vec![sequence(&[1], 3000)], model()).unwrap();
    let mut other = engine.submit(vec![sequence(&[2], 4)], model()).unwrap();
    assert_eq!(wait_for_end(&mut other), Ok(4));
    assert_eq!(wait_for_end(&mut slow), Err(ApiError::slow_client()));
}

#[test]
fn abort_fails_running_and_queued_completions_with_503() {
    let (engine, thread) = engine(1);
    let many = vec![sequence(&[1], 60_000), sequence(&[1], 60_000)];
    let mut running = engine.submit(many, model()).unwrap();
    let mut waiting = engine.submit(vec![sequence(&[2], 4)], model()).unwrap();
    assert!(running.blocking_recv().is_some());
    thread.abort();
    for updates in [&mut running, &mut waiting] {
        let error = wait_for_end(updates).unwrap_err();
        assert_eq!(error.status.as_u16(), 503, "{error:?}");
    }
}

#[test]
fn dropping_the_thread_ends_it_idle_or_busy() {
    for busy in [false, true] {
        let (engine, thread) = engine(1);
        let model = model();
        let long = vec![sequence(&[1], 60_000)];
        let mut updates = engine.submit(long, model.clone()).unwrap();
        assert!(updates.blocking_recv().is_some());
        if !busy {
            drop(updates);
        }
        drop(thread);
        assert_eq!(engine.check_alive(), Err(ApiError::shutting_down()));
        let next = engine.submit(vec![sequence(&[1], 1)], model.clone());
        assert_eq!(next.unwrap_err(), ApiError::shutting_down());
        let running = model.metrics.running.get();
        assert_eq!((engine.queued(), running), (0, 0));
    }
}

//! The engine thread that owns a model: a fair request queue in front of a continuous batch.

mod completion;
mod job;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as jobs;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nextword_data::Tokenizer;
use nextword_generate::{
    BatchOptions, BatchRequest, Batcher, FinishReason, GenerateError, RequestId, Speculation,
    TextGenerator,
};
use tokio::sync::mpsc;

use self::completion::ActiveCompletion;
use self::job::{AliveGuard, Job, Message};
use crate::ServerError;
use crate::api_error::ApiError;
use crate::metrics::{EngineMetrics, EngineSnapshot, RequestMetrics, RunningGuard};
use crate::output::{OutputAssembler, TextDelta, TokenInfo};
use crate::panics;

/// Unread updates that a request may accumulate, besides `MAX_UPDATES_PER_STEP` for each completion.
const CHANNEL_CAPACITY: usize = 256;
/// Maximum number of updates of a completion in one step, including the one that reports a failure; further
/// ones for proposed tokens that are accepted.
const MAX_UPDATES_PER_STEP: usize = 4;
/// Timeouts for a client that stops reading: while other requests wait for a slot, and while none do.
const SLOW_CLIENT_TIMEOUTS: (Duration, Duration) =
    (Duration::from_secs(2), Duration::from_secs(30));
/// Pause between polls while no client reads.
const IDLE_POLL: Duration = Duration::from_millis(2);

/// One completion requested by a client.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) request: BatchRequest,
    pub(crate) stop: Vec<String>,
}

/// The model that a request names: that of the engine, or one of its adapters.
#[derive(Clone, Debug)]
pub(crate) struct RequestedModel {
    /// With the model's own special tokens.
    pub(crate) tokenizer: Arc<dyn Tokenizer>,
    pub(crate) metrics: Arc<RequestMetrics>,
}

/// Progress of one completion.
#[derive(Debug)]
pub(crate) struct Update {
    /// Index of the sequence within its request.
    pub(crate) index: usize,
    pub(crate) kind: UpdateKind,
}

#[derive(Debug)]
pub(crate) enum UpdateKind {
    /// The scored tokens of the prompt. Sent first.
    Prompt(Vec<TokenInfo>),
    Delta(TextDelta),
    End {
        last_delta: TextDelta,
        finish: FinishReason,
        tokens: usize,
        cached_tokens: usize,
    },
    Failed(ApiError),
}

/// Updates of a request's completions. Dropping the receiver cancels them within one step.
pub(crate) type Updates = mpsc::Receiver<Update>;

/// Sends requests to an engine thread.
#[derive(Debug)]
pub(crate) struct Engine {
    messages: jobs::Sender<Message>,
    queued: Arc<AtomicUsize>,
    max_queued: usize,
    slots: usize,
    /// Maximum number of updates of a completion in one step.
    updates_per_step: usize,
    aborted: Arc<AtomicBool>,
    alive: Arc<AtomicBool>,
    metrics: Arc<EngineMetrics>,
}

/// Owns an engine thread. Dropping it fails all completions and waits until the thread has ended, at most one
/// step later.
#[derive(Debug)]
pub(crate) struct EngineThread {
    messages: jobs::Sender<Message>,
    aborted: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Makes the engine fail all its completions after the current step, and end.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
        let _ = self.messages.send(Message::Stop); // Fails if the thread has ended.
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.abort();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // A panic was logged when it happened.
        }
    }
}

impl Engine {
    /// Starts the thread for the model called `name`. At most `max_queued` sequences wait for a slot.
    pub(crate) fn start(
        name: &str,
        generator: TextGenerator,
        options: BatchOptions,
        max_queued: usize,
    ) -> Result<(Self, EngineThread), ServerError> {
        let metrics = Arc::new(EngineMetrics::default());
        let max_proposed = generator.speculation().map_or(0, Speculation::max_tokens);
        let (sender, receiver) = jobs::channel();
        let aborted = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(AtomicBool::new(true));
        let batcher = new_batcher(&generator, options)?;
        metrics.set_cache(&batcher.cache_usage());
        let worker = Worker {
            batcher,
            generator,
            options,
            messages: receiver,
            queue: VecDeque::new(),
            active: BTreeMap::new(),
            aborted: aborted.clone(),
            metrics: metrics.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn({
                let alive = AliveGuard(alive.clone());
                let name = name.to_owned();
                move || {
                    let _alive = alive;
                    let label = format!("the engine of model `{name}`");
                    let _span = tracing::info_span!("engine", model = name).entered();
                    panics::catch(&label, || worker.run(&label));
                    tracing::debug!("ended");
                }
            })?;
        let engine = Self {
            messages: sender.clone(),
            queued: Arc::default(),
            max_queued,
            slots: options.slots,
            updates_per_step: MAX_UPDATES_PER_STEP + max_proposed,
            aborted: aborted.clone(),
            alive,
            metrics,
        };
        let thread = EngineThread {
            messages: sender,
            aborted,
            thread: Some(thread),
        };
        Ok((engine, thread))
    }

    /// Appends a request to the queue.
    ///
    /// # Errors
    /// 429 if the queue is full, 503 if the thread has ended.
    pub(crate) fn submit(
        &self,
        sequences: Vec<Sequence>,
        model: RequestedModel,
    ) -> Result<Updates, ApiError> {
        let count = sequences.len();
        let fits = |queued: usize| {
            (queued + count <= self.max_queued.max(count)).then_some(queued + count)
        };
        let (set_order, fetch_order) = (Ordering::AcqRel, Ordering::Acquire);
        if self
            .queued
            .fetch_update(set_order, fetch_order, fits)
            .is_err()
        {
            model.metrics.rejected.add(1);
            return Err(ApiError::queue_full());
        }
        let reserved = self.updates_per_step * count;
        let (sender, updates) = mpsc::channel(CHANNEL_CAPACITY + reserved);
        let job = Job {
            model,
            pending: sequences.into_iter().enumerate().collect(),
            updates: sender,
            reserved,
            submitted: Instant::now(),
            queued: self.queued.clone(),
        };
        let sent = self.messages.send(Message::Job(job));
        sent.map_err(|_| self.unavailable())?;
        Ok(updates)
    }

    /// Checks that the engine thread is running.
    ///
    /// # Errors
    /// 503 if the thread has ended.
    pub(crate) fn check_alive(&self) -> Result<(), ApiError> {
        let alive = self.alive.load(Ordering::Acquire);
        alive.then_some(()).ok_or_else(|| self.unavailable())
    }

    fn unavailable(&self) -> ApiError {
        if self.aborted.load(Ordering::Acquire) {
            return ApiError::shutting_down();
        }
        ApiError::unavailable("this model's engine has crashed; hint: restart the server")
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }

    /// The state of the engine for the exporter.
    pub(crate) fn snapshot(&self) -> EngineSnapshot<'_> {
        EngineSnapshot {
            metrics: &self.metrics,
            queued: self.queued(),
            slots: self.slots,
        }
    }
}

/// An empty batch for the model of `generator`.
fn new_batcher(generator: &TextGenerator, options: BatchOptions) -> Result<Batcher, GenerateError> {
    let batcher = Batcher::new(generator.model().clone(), options);
    match generator.speculation() {
        Some(speculation) => batcher.with_speculation(speculation),
        None => Ok(batcher),
    }
}

struct Worker {
    generator: TextGenerator,
    options: BatchOptions,
    batcher: Batcher,
    messages: jobs::Receiver<Message>,
    /// Round-robin over requests: each admits one sequence at a time.
    queue: VecDeque<Job>,
    active: BTreeMap<RequestId, ActiveCompletion>,
    aborted: Arc<AtomicBool>,
    metrics: Arc<EngineMetrics>,
}

impl Worker {
    /// Runs until it is aborted; `label` names the engine in logs.
    fn run(mut self, label: &str) {
        loop {
            match panics::catch(label, || self.tick()) {
                Some(true) => {}
                Some(false) => return,
                // No input should cause a panic; after one, the next requests start with an empty KV cache.
                None => {
                    self.fail_all(&ApiError::internal(
                        "internal server error: the model's engine panicked (a bug in nextword)",
                    ));
                    if let Ok(batcher) = new_batcher(&self.generator, self.options) {
                        self.batcher = batcher;
                    }
                }
            }
        }
    }

    /// Runs one step of the batch. Returns false once it is aborted.
    fn tick(&mut self) -> bool {
        self.receive_messages();
        if self.aborted.load(Ordering::Acquire) {
            self.cancel_all();
            return false;
        }
        self.drop_cancelled();
        self.admit();
        if self.active.is_empty() && self.queue.is_empty() {
            return true;
        }
        if self.apply_backpressure() {
            std::thread::sleep(IDLE_POLL);
        } else {
            self.step();
        }
        true
    }

    /// Queues all new requests; blocks for a message while there is nothing to do.
    fn receive_messages(&mut self) {
        self.publish_usage();
        let is_idle = self.active.is_empty() && self.queue.is_empty();
        let first = is_idle.then(|| self.messages.recv());
        if matches!(first, Some(Err(_))) {
            // All senders are gone, so no work can arrive.
            self.aborted.store(true, Ordering::Release);
        }
        let first = first.and_then(Result::ok);
        for message in first.into_iter().chain(self.messages.try_iter()) {
            match message {
                Message::Job(job) => self.queue.push_back(job),
                Message::Stop => {} // Wakes the thread; the flag is set.
            }
        }
    }

    /// Frees the slots and queue entries of clients that disconnected.
    fn drop_cancelled(&mut self) {
        let gone: Vec<RequestId> = self
            .active
            .iter()
            .filter(|(_, active)| active.updates.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.batcher.cancel(id);
            if let Some(active) = self.active.remove(&id) {
                active.model.metrics.cancelled.add(1);
            }
        }
        self.queue.retain(|job| {
            let keep = !job.updates.is_closed();
            if !keep {
                job.model.metrics.cancelled.add(job.pending.len() as u64);
            }
            keep
        });
    }

    /// Pauses completions whose clients do not read, and fails them after a timeout. Returns whether all
    /// are paused.
    fn apply_backpressure(&mut self) -> bool {
        let (contended, uncontended) = SLOW_CLIENT_TIMEOUTS;
        let timeout = if self.queue.is_empty() {
            uncontended
        } else {
            contended
        };
        let mut all_stalled = true;
        let mut timed_out = Vec::new();
        for (id, active) in &mut self.active {
            let stalled = active.updates.capacity() < active.reserved;
            if stalled != active.stalled_since.is_some() {
                self.batcher.set_paused(*id, stalled);
                active.stalled_since = stalled.then(Instant::now);
            }
            all_stalled &= stalled;
            if active
                .stalled_since
                .is_some_and(|since| since.elapsed() > timeout)
            {
                timed_out.push(*id);
            }
        }
        for id in timed_out {
            self.batcher.cancel(id);
            if let Some(active) = self.active.remove(&id) {
                active.send(UpdateKind::Failed(ApiError::slow_client()));
                active.model.metrics.cancelled.add(1);
            }
        }
        all_stalled
    }

    fn admit(&mut self) {
        while let Some(mut job) = self.queue.pop_front() {
            let next = job.pending.front().map(|(_, next)| &next.request);
            if next.is_some_and(|request| !self.batcher.can_admit(request)) {
                self.queue.push_front(job);
                return;
            }
            let Some((index, sequence)) = job.next() else {
                continue;
            };
            if let Err(message) = self.start(index, sequence, &job) {
                let kind = UpdateKind::Failed(ApiError::internal(message));
                let _ = job.updates.try_send(Update { index, kind }); // The client may have disconnected.
            }
            if !job.pending.is_empty() {
                self.queue.push_back(job);
            }
        }
    }

    fn start(&mut self, index: usize, sequence: Sequence, job: &Job) -> Result<(), String> {
        let Sequence { request, stop } = sequence;
        let prompt = request.prompt.clone();
        let model = job.model.clone();
        let tokenizer = model.tokenizer.clone();
        // A target is a text of its own, not the rest of its source.
        let has_encoder = self.generator.model().config().has_encoder();
        let before: &[u32] = if has_encoder { &[] } else { &prompt };
        let assembler = OutputAssembler::new(tokenizer, before, &stop, request.min_tokens)
            .map_err(|e| e.to_string())?;
        let admitted = self.batcher.admit(request).map_err(|e| e.to_string())?;
        let id = admitted.ok_or("no slot or memory is free")?;
        let cached_tokens = self.batcher.cached_tokens(id);
        model.metrics.prompt_tokens.add(prompt.len() as u64);
        model.metrics.cached_tokens.add(cached_tokens as u64);
        let active = ActiveCompletion {
            _running: RunningGuard::new(model.metrics.clone()),
            model,
            index,
            updates: job.updates.clone(),
            reserved: job.reserved,
            stalled_since: None,
            assembler,
            prompt,
            tokens: 0,
            cached_tokens,
            last_event: job.submitted,
        };
        self.active.insert(id, active);
        Ok(())
    }

    fn step(&mut self) {
        let (active, queued) = (self.active.len(), self.queue.len());
        let _span = tracing::debug_span!("step", active, queued).entered();
        let start = Instant::now();
        let events = self.batcher.step();
        self.publish_usage();
        for (id, event) in events {
            let Some(mut active) = self.active.remove(&id) else {
                continue;
            };
            if active.handle_event(event, &mut self.batcher, id) {
                self.active.insert(id, active);
            }
        }
        tracing::debug!(ms = start.elapsed().as_secs_f64() * 1e3, "step done");
    }

    fn publish_usage(&self) {
        self.metrics.set_cache(&self.batcher.cache_usage());
        self.metrics.set_proposals(self.batcher.proposal_counts());
    }

    fn cancel_all(&mut self) {
        for id in self.active.keys() {
            self.batcher.cancel(*id);
        }
        self.fail_all(&ApiError::shutting_down());
    }

    fn fail_all(&mut self, error: &ApiError) {
        for active in std::mem::take(&mut self.active).into_values() {
            active.send(UpdateKind::Failed(error.clone()));
        }
    }
}

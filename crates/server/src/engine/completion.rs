//! A completion in the batch and the updates that its client receives.

use std::time::Instant;

use nextword_generate::{Batcher, Event, FinishReason, RequestId};
use tokio::sync::mpsc;

use super::{RequestedModel, Update, UpdateKind};
use crate::api_error::ApiError;
use crate::metrics::RunningGuard;
use crate::output::{OutputAssembler, prompt_tokens};

/// A completion in the batch.
pub(super) struct ActiveCompletion {
    pub(super) _running: RunningGuard,
    pub(super) model: RequestedModel,
    pub(super) index: usize,
    pub(super) updates: mpsc::Sender<Update>,
    /// Channel capacity that one step of its request may need.
    pub(super) reserved: usize,
    /// When its client stopped reading, if it did.
    pub(super) stalled_since: Option<Instant>,
    pub(super) assembler: OutputAssembler,
    pub(super) prompt: Vec<u32>,
    pub(super) tokens: usize,
    pub(super) cached_tokens: usize,
    /// Time of submission, then of the latest token.
    pub(super) last_event: Instant,
}

impl ActiveCompletion {
    pub(super) fn send(&self, kind: UpdateKind) {
        let index = self.index;
        // Paused completions send nothing, so there is capacity. Disconnects are handled later.
        let _ = self.updates.try_send(Update { index, kind });
    }

    /// Forwards an event to the client. Returns whether the completion continues.
    pub(super) fn handle_event(
        &mut self,
        event: Event,
        batcher: &mut Batcher,
        id: RequestId,
    ) -> bool {
        match event {
            Event::Prompt(scores) => {
                let tokens = prompt_tokens(&self.model.tokenizer, &self.prompt, &scores);
                self.send(UpdateKind::Prompt(tokens));
                true
            }
            Event::Token {
                id: token,
                score,
                finish,
            } => {
                self.record_token();
                let is_eos = finish == Some(FinishReason::Eos);
                let delta = self.assembler.push(token, score.as_ref(), is_eos);
                if !delta.is_empty() {
                    self.send(UpdateKind::Delta(delta));
                }
                let finish = if self.assembler.stopped() {
                    batcher.cancel(id);
                    Some(FinishReason::Stop(String::new()))
                } else {
                    finish
                };
                let continues = finish.is_none();
                if let Some(finish) = finish {
                    self.finish(finish);
                }
                continues
            }
            Event::End(finish) => {
                self.finish(finish);
                false
            }
            Event::Failed(error) => {
                self.send(UpdateKind::Failed(ApiError::internal(error.to_string())));
                false
            }
        }
    }

    fn record_token(&mut self) {
        let metrics = &self.model.metrics;
        let now = Instant::now();
        let histogram = if self.tokens == 0 {
            &metrics.first_token
        } else {
            &metrics.next_token
        };
        histogram.observe(now.duration_since(self.last_event).as_secs_f64());
        self.last_event = now;
        self.tokens += 1;
        metrics.generated_tokens.add(1);
    }

    fn finish(&mut self, finish: FinishReason) {
        let last_delta = self.assembler.finish();
        // The pending text may complete a stop string.
        let finish = if self.assembler.stopped() {
            FinishReason::Stop(String::new())
        } else {
            finish
        };
        self.send(UpdateKind::End {
            last_delta,
            finish,
            tokens: self.tokens,
            cached_tokens: self.cached_tokens,
        });
    }
}

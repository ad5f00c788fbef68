//! How a token was chosen, cut by cut: for those who want to see it.

use serde::{Deserialize, Serialize};

use crate::candidates::Candidates;
use crate::sampler::likeliest;
use crate::{Choice, GenerateError, History, Place, Sampler};

/// Which setting takes a token out of the draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Its logit is negative infinity.
    Forbidden,
    /// It is not among the k likeliest.
    TopK,
    /// It is not among the fewest likeliest with the probability p together.
    TopP,
    /// It has too small a share of the likeliest one's probability.
    MinP,
    /// The temperature is 0 and it is not the likeliest.
    Greedy,
}

/// A token before the draw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// The model's own logit.
    pub logit: f32,
    /// The logit with bias and penalties.
    pub adjusted: f32,
    /// Its probability at the temperature (at temperature 0: at 1), before any cut.
    pub probability: f64,
    /// What took it out.
    pub cut: Option<Cut>,
    /// Its probability in the draw; 0 if it was taken out.
    pub share: f64,
    /// Shares of all tokens with lower ids: it is drawn if the random number falls between `from`
    /// and `from + share`.
    pub from: f64,
}

/// One choice with all that led to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// Every token, in the order of ids.
    pub candidates: Vec<Candidate>,
    /// The random number in [0, 1); `None` at temperature 0.
    pub uniform: Option<f64>,
    /// What was chosen, as [`Sampler::sample`] chooses it.
    pub choice: Choice,
}

impl Sampler {
    /// As [`sample`](Self::sample), with all that led to the choice.
    ///
    /// # Errors
    /// As [`sample`](Self::sample).
    pub fn drawing(
        &self,
        logits: &[f32],
        history: &History,
        place: Place,
    ) -> Result<Drawing, GenerateError> {
        let choice = self.sample(logits, history, place)?;
        let adjusted = self.adjust(logits, history);
        let best = likeliest(&adjusted).ok_or(GenerateError::NothingLeft)?;
        let config = self.config();
        let greedy = config.temperature <= 0.0;
        let temperature = if greedy { 1.0 } else { config.temperature };
        let mut left = Candidates::new(&adjusted, adjusted[best], temperature);
        let all = {
            let mut all = left.clone();
            all.weigh();
            all
        };
        let mut candidates: Vec<Candidate> = (0_u32..)
            .zip(logits.iter().zip(adjusted.iter()))
            .map(|(id, (logit, adjusted))| Candidate {
                id,
                logit: *logit,
                adjusted: *adjusted,
                probability: 0.0,
                cut: Some(Cut::Forbidden),
                share: 0.0,
                from: 0.0,
            })
            .collect();
        for (id, share) in all.shares() {
            let candidate = &mut candidates[id as usize];
            (candidate.probability, candidate.cut) = (share, Some(Cut::Greedy));
        }
        if greedy {
            (candidates[best].cut, candidates[best].share) = (None, 1.0);
        } else {
            mark(&mut candidates, &left, Cut::TopK);
            if let Some(k) = config.top_k {
                left.keep_top_k(k);
            }
            mark(&mut candidates, &left, Cut::TopP);
            left.weigh();
            if let Some(p) = config.top_p {
                left.keep_top_p(p);
            }
            mark(&mut candidates, &left, Cut::MinP);
            if let Some(p) = config.min_p {
                left.keep_min_p(p);
            }
            for (id, share) in left.shares() {
                let candidate = &mut candidates[id as usize];
                (candidate.cut, candidate.share) = (None, share);
            }
        }
        let mut sum = 0.0;
        for candidate in &mut candidates {
            candidate.from = sum;
            sum += candidate.share;
        }
        Ok(Drawing {
            candidates,
            uniform: (!greedy).then(|| self.uniform(place)),
            choice,
        })
    }
}

/// Those that are left now will, if they go, have gone by `next`.
fn mark(candidates: &mut [Candidate], left: &Candidates, next: Cut) {
    for id in left.ids() {
        candidates[id as usize].cut = Some(next);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::SamplingConfig;

    #[test]
    fn the_drawing_shows_what_sampling_does() {
        let logits = [2.0, 1.0, 0.5, -1.0, f32::NEG_INFINITY, 1.5];
        for position in 0..200 {
            let config = SamplingConfig {
                temperature: 0.7,
                top_k: Some(4),
                top_p: Some(0.9),
                min_p: Some(0.05),
                seed: position % 7,
                ..SamplingConfig::default()
            };
            let sampler = Sampler::new(config).unwrap();
            let place = Place {
                sequence: 0,
                position,
            };
            let drawing = sampler
                .drawing(&logits, &History::default(), place)
                .unwrap();
            let u = drawing.uniform.unwrap();
            let hit = drawing
                .candidates
                .iter()
                .find(|c| c.share > 0.0 && u < c.from + c.share)
                .unwrap();
            assert_eq!(hit.id, drawing.choice.id);
            assert!((hit.share - drawing.choice.probability).abs() < 1e-12);
            let shares: f64 = drawing.candidates.iter().map(|c| c.share).sum();
            assert!((shares - 1.0).abs() < 1e-12);
            assert_eq!(drawing.candidates[4].cut, Some(Cut::Forbidden));
            assert_eq!(drawing.candidates[3].cut, Some(Cut::TopK));
            assert_eq!(drawing.candidates[0].cut, None);
        }
    }

    #[test]
    fn without_temperature_only_the_likeliest_is_left() {
        let sampler = Sampler::new(SamplingConfig::greedy()).unwrap();
        let place = Place {
            sequence: 0,
            position: 0,
        };
        let drawing = sampler
            .drawing(&[0.0, 1.0], &History::default(), place)
            .unwrap();
        assert_eq!((drawing.choice.id, drawing.uniform), (1, None));
        assert_eq!(drawing.candidates[0].cut, Some(Cut::Greedy));
        assert!((drawing.candidates[1].probability - 0.731_058_578_6).abs() < 1e-9);
    }
}

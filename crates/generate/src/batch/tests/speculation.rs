//! Speculative decoding of a batch.

use super::paging::{long_model, paged, run_all};
use super::*;
use crate::Speculation;

fn requests() -> Vec<BatchRequest> {
    (0..24)
        .map(|n| {
            let part = ids(3 + (n as usize * 7) % 30, n % 5);
            let mut request = request([&part[..], &part].concat(), n);
            request.max_tokens = 1 + (n as usize * 13) % 60;
            if n % 2 == 0 {
                request.sampling.temperature = 0.0;
            }
            request.sampling.presence_penalty = f64::from(u8::from(n % 5 == 1));
            request.stop_ids = vec![5];
            request.min_tokens = 8;
            request
        })
        .collect()
}

#[test]
fn a_speculative_batch_has_the_bits_of_single_steps() {
    for position in [Position::Rotary, Position::Alibi] {
        let model = long_model(position, Vec::new());
        let requests = requests();
        let expected = run_all(&mut paged(1, 128, model.clone()), &requests);
        let draft = |seed| Speculation::Draft {
            model: Box::new(model.config().init(&Device::flex(), seed).unwrap()),
            max_tokens: 4,
        };
        let speculations = [
            Speculation::PromptLookup { max_tokens: 6 },
            draft(3), // the model itself
            draft(4),
        ];
        for speculation in speculations {
            for (slots, cache_tokens) in [(1, 128), (3, 400), (8, 300)] {
                let batcher = paged(slots, cache_tokens, model.clone());
                let mut batcher = batcher.with_speculation(&speculation).unwrap();
                let outputs = run_all(&mut batcher, &requests);
                assert_eq!(outputs, expected, "{slots} slots, {speculation:?}");
                let counts = batcher.proposal_counts();
                assert!(counts.proposed > 50 && counts.accepted > 0, "{counts:?}");
                assert_eq!(batcher.cache_usage().used, 0);
            }
        }
    }
}

//! Prompts with the completions of others, whose log ratios estimate the divergence of a model from the reference.

use super::fit::Fitted;

/// For each rated completion, its prompt with the completion of another one: of the next, going around, that has another
/// prompt, or its own if all prompts are equal. Rows have `max_length` tokens. As in TRL, the pairs stay the same during
/// the run; there, prompts are not compared.
pub(super) fn mismatched(completions: &[&Fitted], max_length: usize) -> Vec<Fitted> {
    let others = with_other_prompts(completions);
    let pairs = completions.iter().zip(others);
    pairs
        .map(|(own, other)| joined(own, completions[other], max_length))
        .collect()
}

/// For each completion, the next one with another prompt.
fn with_other_prompts(completions: &[&Fitted]) -> Vec<usize> {
    let count = completions.len();
    let prompt = |at: usize| completions[at % count].prompt();
    let mut others = vec![None; 2 * count];
    for at in (0..(2 * count).saturating_sub(1)).rev() {
        others[at] = if prompt(at) == prompt(at + 1) {
            others[at + 1]
        } else {
            Some((at + 1) % count)
        };
    }
    let others = others.into_iter().take(count).enumerate();
    others.map(|(at, other)| other.unwrap_or(at)).collect()
}

/// The prompt of `own` with the completion of `other`.
fn joined(own: &Fitted, other: &Fitted, max_length: usize) -> Fitted {
    let (prompt, start) = (own.prompt(), other.prompt().len());
    let mut ids = prompt.to_vec();
    ids.extend(&other.ids[start..]);
    // A row predicts one token more than it has. Its own completion fits, so that there is room for a trained token.
    ids.truncate(max_length + 1);
    let shifted = other.trained.iter().map(|span| {
        let [from, to] = [span.start, span.end].map(|at| at - start + prompt.len());
        from..to.min(ids.len())
    });
    Fitted {
        trained: shifted.filter(|span| span.start < span.end).collect(),
        ids,
        prompt_ends: Vec::new(),
        is_cut: false,
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn fitted(prompt: &[u32], completion: &[u32]) -> Fitted {
        Fitted {
            ids: [prompt, completion].concat(),
            trained: vec![prompt.len()..prompt.len() + completion.len()],
            prompt_ends: vec![prompt.len()],
            is_cut: false,
        }
    }

    #[test]
    fn each_prompt_gets_the_next_completion_of_another_prompt() {
        let all = [
            fitted(&[1, 2], &[7]),
            fitted(&[1, 2], &[8]),
            fitted(&[3], &[9, 9, 9]),
            fitted(&[1, 2], &[6]),
        ];
        let all: Vec<&Fitted> = all.iter().collect();
        let found = mismatched(&all, 3);
        let ids: Vec<_> = found.iter().map(|sample| sample.ids.as_slice()).collect();
        // The completion of the third is cut to rows of three tokens, which predict four.
        let expected: [&[u32]; 4] = [&[1, 2, 9, 9], &[1, 2, 9, 9], &[3, 6], &[1, 2, 9, 9]];
        assert_eq!(ids, expected);
        assert_eq!(
            (found[0].trained[0].clone(), found[2].trained[0].clone()),
            (2..4, 1..2)
        );
    }

    #[test]
    fn nothing_predicts_one_token_after_an_empty_prompt() {
        let all = [fitted(&[], &[7, 8]), fitted(&[1], &[9])];
        let found = mismatched(&all.iter().collect::<Vec<_>>(), 9);
        assert_eq!(found[0].ids, [9]);
        let have_target = [&found[0], &found[1], &all[0], &all[1]].map(Fitted::has_target);
        assert_eq!(have_target, [false, true, true, true]);
    }

    #[test]
    fn equal_prompts_keep_their_completions() {
        let all = [fitted(&[1], &[7]), fitted(&[1], &[8])];
        let found = mismatched(&all.iter().collect::<Vec<_>>(), 9);
        assert_eq!((&found[0].ids, &found[1].ids), (&all[0].ids, &all[1].ids));
        assert_eq!(mismatched(&[], 9), []);
    }
}

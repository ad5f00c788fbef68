//! What a text makes of the inputs of the linear layers.

use nextword_data::EvalWindows;
use nextword_model::{ForwardContext, InputSquares, Transformer};

use crate::batch::{batch_context, batch_tokens, check_batch};
use crate::padding::without_padding;
use crate::{EvalError, EvalProgress};

/// Runs `model` over windows of a text that are spread evenly over it, at most `max_tokens` tokens, but at least one window,
/// and returns the mean squares of the inputs of its linear layers, to quantize it for such text
/// ([`Transformer::quantize_for_inputs`]).
///
/// # Errors
/// [`EvalError::UnknownToken`] and [`EvalError::TooLong`] if the windows do not fit the model; [`EvalError::Data`] if
/// they cannot be read.
///
/// # Example
///
/// ```
/// use burn::tensor::Device;
/// use nextword_data::{EvalWindows, Packing, Tokens};
/// use nextword_eval::input_squares;
/// use nextword_model::{Bits, presets};
///
/// let model = presets::shakespeare_char_cpu(65).init(&Device::flex(), 1)?;
/// let windows = EvalWindows::new(Tokens::from_ids([1, 2, 3].repeat(70)), 32, Packing::Packed, 0)?;
/// let inputs = input_squares(&model, windows, 100, &mut |_| {})?;
/// assert_eq!(inputs.tokens(), 3 * 32);
/// let small = model.quantize_for_inputs(Bits::Int4, Bits::Int8, &inputs);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn input_squares(
    model: &Transformer,
    windows: EvalWindows,
    max_tokens: usize,
    on_progress: &mut dyn FnMut(EvalProgress),
) -> Result<InputSquares, EvalError> {
    let used = max_tokens / windows.context_length().max(1);
    let windows = windows.limit(used); // At least one.
    let mut inputs = InputSquares::default();
    for (done, batch) in windows.batches(1).enumerate() {
        let batch = batch?;
        check_batch(model, &batch)?;
        for batch in without_padding(batch) {
            let device = model.device();
            let mut ctx = batch_context(ForwardContext::with_probe(&mut inputs), &batch, &device);
            model.hidden_states(batch_tokens(&batch, &device), &mut ctx);
        }
        on_progress(EvalProgress::Windows {
            done: done as u64 + 1,
            all: windows.len() as u64,
        });
    }
    Ok(inputs)
}

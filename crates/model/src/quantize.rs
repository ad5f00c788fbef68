//! Models whose matrices are held in 8 or 4 bits: made from others, written and read.
//!
//! In the file a matrix `NAME` is two tensors: `NAME.int8` (I8, `[d_out, d_in]`) or `NAME.int4` (U8,
//! `[d_out, d_in / 2 rounded up]`, the earlier value in the lower half, 8 added to each, so that 0 is
//! not in use and 8 fills up), and
//! `NAME.scale` (BF16, `[d_out, d_in / 32 rounded up]`), one scale for 32 values of a row. A value is
//! its integer times its scale. Vectors and position embeddings stay in f32. Embeddings are as they
//! are in other files, `[vocab_size, d_model]`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use nextword_kernels::{Bits, QuantizedMatrix};
use safetensors::tensor::{Dtype, View};

use crate::linear::{Linear, nothing};
use crate::weights::{self, TensorFile};
use crate::{ModelConfig, ModelError, Transformer, write_atomically};

const TABLE: &str = "token_embedding.weight";
const HEAD: &str = "head.weight";

/// Lists the linear layers of `$blocks` by the names of their weights; `$of` is `&` or `&mut`.
macro_rules! linears {
    ($blocks:expr, [$($of:tt)+]) => {{
        let mut found = Vec::new();
        for (layer, block) in $blocks.enumerate() {
            let mut add = |name: &str, linear| {
                found.push((format!("blocks.{layer}.{name}.weight"), linear));
            };
            let attention = $($of)+ block.attention;
            add("attention.query", $($of)+ attention.query);
            add("attention.key", $($of)+ attention.key);
            add("attention.value", $($of)+ attention.value);
            if let Some(output) = $($of)+ attention.output {
                add("attention.output", output);
            }
            if let Some(feed_forward) = $($of)+ block.feed_forward {
                if let Some(gate) = $($of)+ feed_forward.gate {
                    add("feed_forward.gate", gate);
                }
                add("feed_forward.up", $($of)+ feed_forward.up);
                add("feed_forward.down", $($of)+ feed_forward.down);
            }
        }
        found
    }};
}

impl Transformer {
    /// The linear layers of the blocks by the names of their weights.
    pub(crate) fn linears(&self) -> Vec<(String, &Linear)> {
        linears!(self.blocks.iter(), [&])
    }

    /// As [`linears`](Self::linears), to be changed.
    pub(crate) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        linears!(self.blocks.iter_mut(), [&mut])
    }

    /// The same model with all matrices but the position embedding rounded to `bits`. It can be run
    /// and measured, not trained.
    ///
    /// # Panics
    /// If it is quantized already.
    #[must_use]
    pub fn quantize(mut self, bits: Bits) -> Self {
        assert!(self.bits().is_none(), "the model is quantized already");
        for (_, linear) in self.linears_mut() {
            linear.quantize(bits);
        }
        let table = self.token_embedding.weight.val();
        let device = table.device();
        self.quantized_table = Some(QuantizedMatrix::of_table(table, bits));
        self.token_embedding.weight = nothing(&device);
        if let Some(weight) = &mut self.head.weight {
            self.head.quantized = Some(QuantizedMatrix::of_weight(weight.val(), bits));
            *weight = nothing(&device);
        }
        self
    }

    /// The width of the weights, where they are quantized.
    pub fn bits(&self) -> Option<Bits> {
        self.quantized_table.as_ref().map(QuantizedMatrix::bits)
    }

    /// Each quantized matrix by name with the values that it stands for, as they lie in other files.
    pub fn widened(&self) -> impl Iterator<Item = (String, TensorData)> {
        let (all, device) = (self.quantized().into_iter(), self.device());
        all.map(move |(name, matrix)| {
            let values = widened(matrix, &device, name == TABLE).val();
            (name, values.into_data())
        })
    }

    /// The quantized matrices by name.
    fn quantized(&self) -> Vec<(String, &QuantizedMatrix)> {
        let linears = self.linears().into_iter();
        let linears = linears.filter_map(|(name, linear)| Some((name, linear.quantized()?)));
        let table = self.quantized_table.as_ref();
        let table = table.map(|table| (TABLE.to_string(), table));
        let head = self.head.quantized.as_ref();
        let head = head.map(|head| (HEAD.to_string(), head));
        table.into_iter().chain(linears).chain(head).collect()
    }
}

/// The tensor of a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a quantized `model` to `path`, whole or not at all.
///
/// # Errors
/// [`ModelError::Io`] if the file cannot be written.
pub(crate) fn save(model: &Transformer, path: &Path) -> Result<(), ModelError> {
    let mut tensors = BTreeMap::new();
    for (name, matrix) in model.quantized() {
        let [d_in, d_out] = matrix.shape();
        let (integers, scales) = matrix.parts();
        let (suffix, dtype, width, bytes) = match matrix.bits() {
            Bits::Int8 => {
                let bytes = integers.into_iter().map(i8::cast_unsigned).collect();
                ("int8", Dtype::I8, d_in, bytes)
            }
            Bits::Int4 => ("int4", Dtype::U8, d_in.div_ceil(2), halves(&integers, d_in)),
        };
        let values = Stored {
            dtype,
            shape: vec![d_out, width],
            bytes,
        };
        let scale = Stored {
            dtype: Dtype::BF16,
            shape: vec![d_out, QuantizedMatrix::blocks(d_in)],
            bytes: scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        };
        tensors.insert(format!("{name}.{suffix}"), values);
        tensors.insert(format!("{name}.scale"), scale);
    }
    weights::for_each(model, |name, data| {
        let shape = data.shape().to_vec();
        if shape.contains(&0) {
            return; // Held quantized.
        }
        let values = weights::floats(data);
        let stored = Stored {
            dtype: Dtype::F32,
            shape,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        tensors.insert(name.to_string(), stored);
    });
    let file = safetensors::serialize(&tensors, weights::metadata());
    let file = file.map_err(|e| ModelError::Format {
        path: path.to_path_buf(),
        problem: e.to_string(),
    })?;
    write_atomically(path, &file)
}

/// Two values a byte, row by row of `width` values.
fn halves(integers: &[i8], width: usize) -> Vec<u8> {
    let half = |value: i8| (i32::from(value) + 8) as u8;
    integers
        .chunks(width.max(1))
        .flat_map(|row| {
            let pairs = row.chunks(2);
            pairs.map(|pair| half(pair[0]) | half(pair.get(1).copied().unwrap_or(0)) << 4)
        })
        .collect()
}

/// Whether `file` holds quantized weights, and of which width.
pub(crate) fn bits_of(file: &TensorFile) -> Option<Bits> {
    let has = |suffix: &str| file.shape(&format!("{TABLE}.{suffix}")).is_some();
    if has("int8") {
        Some(Bits::Int8)
    } else {
        has("int4").then_some(Bits::Int4)
    }
}

/// Builds the model of `config` on `device` with the quantized weights in `path`. Elsewhere than on
/// flex they are widened once, here.
///
/// # Errors
/// As [`weights::load`].
pub(crate) fn load(
    config: &ModelConfig,
    path: &Path,
    file: &TensorFile,
    bits: Bits,
    device: &Device,
) -> Result<Transformer, ModelError> {
    compare(config, path, file, bits)?;
    let mut model = config.build(device)?;
    let in_place = QuantizedMatrix::runs_on(device);
    let read = |name: &str, shape: [usize; 2]| matrix(file, name, shape, bits);
    let d = [config.d_model, config.vocab_size];
    let table = read(TABLE, d)?;
    if in_place {
        model.quantized_table = Some(table);
        model.token_embedding.weight = nothing(device);
    } else {
        model.token_embedding.weight = widened(&table, device, true);
    }
    if model.head.weight.is_some() {
        let head = read(HEAD, d)?;
        if in_place {
            model.head.quantized = Some(head);
            model.head.weight = Some(nothing(device));
        } else {
            model.head.weight = Some(widened(&head, device, false));
        }
    }
    for (name, linear) in model.linears_mut() {
        let weight = read(&name, linear.weight.val().dims())?;
        if in_place {
            linear.replace(weight);
        } else {
            linear.weight = widened(&weight, device, false);
        }
    }
    weights::fill(model, file)
}

/// The values of `matrix` as a parameter; a table is stored the other way round.
fn widened(matrix: &QuantizedMatrix, device: &Device, is_table: bool) -> Param<Tensor<2>> {
    let data = TensorData::new(matrix.values(), matrix.shape());
    let values = Tensor::<2>::from_data(data, device);
    Param::from_tensor(if is_table { values.transpose() } else { values })
}

/// The quantized matrix `name` of `[d_in, d_out]`. The smallest integer, -128 or -8, is no value of
/// ours: it is refused.
fn matrix(
    file: &TensorFile,
    name: &str,
    [d_in, d_out]: [usize; 2],
    bits: Bits,
) -> Result<QuantizedMatrix, ModelError> {
    let name_of_integers = format!("{name}.{}", suffix(bits));
    let bytes = file.bytes(&name_of_integers)?;
    let integers: Vec<i8> = match bits {
        Bits::Int8 => bytes.iter().map(|b| b.cast_signed()).collect(),
        Bits::Int4 => {
            let value = |half: u8| (i32::from(half) - 8) as i8;
            let rows = bytes.chunks(d_in.div_ceil(2).max(1));
            rows.flat_map(|row| {
                let both = row.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                both.map(value).take(d_in)
            })
            .collect()
        }
    };
    let smallest = match bits {
        Bits::Int8 => i8::MIN,
        Bits::Int4 => -8,
    };
    if integers.contains(&smallest) {
        return Err(ModelError::Format {
            path: file.path().to_path_buf(),
            problem: format!("`{name_of_integers}` holds {smallest}, which is not in use"),
        });
    }
    let scales = file.bytes(&format!("{name}.scale"))?;
    let scales: Vec<u16> = scales
        .as_chunks()
        .0
        .iter()
        .map(|b| u16::from_le_bytes(*b))
        .collect();
    let shape = [d_in, d_out];
    Ok(QuantizedMatrix::from_parts(shape, bits, &integers, &scales))
}

fn suffix(bits: Bits) -> &'static str {
    match bits {
        Bits::Int8 => "int8",
        Bits::Int4 => "int4",
    }
}

/// Holds the file's names, shapes and types against the configuration.
fn compare(
    config: &ModelConfig,
    path: &Path,
    file: &TensorFile,
    bits: Bits,
) -> Result<(), ModelError> {
    let mut expected = Vec::new();
    for (name, shape) in weights::layout(config) {
        if shape.len() != 2 || name.starts_with("position_embedding") {
            expected.push((name, shape, None));
            continue;
        }
        // Tables lie as they are, other matrices the other way round.
        let [d_out, d_in] = if name == TABLE {
            [shape[0], shape[1]]
        } else {
            [shape[1], shape[0]]
        };
        let (width, dtype) = match bits {
            Bits::Int8 => (d_in, Dtype::I8),
            Bits::Int4 => (d_in.div_ceil(2), Dtype::U8),
        };
        let blocks = QuantizedMatrix::blocks(d_in);
        expected.push((
            format!("{name}.{}", suffix(bits)),
            vec![d_out, width],
            Some(dtype),
        ));
        expected.push((
            format!("{name}.scale"),
            vec![d_out, blocks],
            Some(Dtype::BF16),
        ));
    }
    weights::compare_with(&expected, path, file)
}

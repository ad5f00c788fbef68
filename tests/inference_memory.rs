//! Memory of inference with quantized weights: that of the weights, and little more.

use std::path::Path;

use nextword_model::weights::{WeightSource, write_source};
use nextword_model::{
    BlockFormat, ModelConfig, ModelDir, ModelError, QuantizedMatrix, presets, weights,
};

use crate::test_dir::{TestDir, json_lines};
use crate::util::{root, stderr};

/// Weights whose matrices in the blocks have 4 bits, and whose other values are 1.
#[derive(Debug)]
struct FourBits(Vec<(String, Vec<usize>)>);

impl WeightSource for FourBits {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        let (_, shape) = self.0.iter().find(|(other, _)| other == name)?;
        Some(shape)
    }

    fn values(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        let shape = self.shape(name).unwrap_or_default();
        Ok(vec![1.0; shape.iter().product()])
    }

    fn matrix_format(&self, name: &str) -> Option<BlockFormat> {
        let is_matrix = name.starts_with("blocks.") && self.shape(name)?.len() == 2;
        is_matrix.then_some(BlockFormat::Q4_0)
    }

    fn quantized_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
    ) -> Result<Option<QuantizedMatrix>, ModelError> {
        let Some(format) = self.matrix_format(name) else {
            return Ok(None);
        };
        let block = [&[0, 0x18][..], &[0x3b; 16]].concat(); // The scale is 2^-9.
        let bytes = block.repeat(shape[0] / 32 * shape[1]);
        Ok(QuantizedMatrix::from_gguf(shape, format, &bytes))
    }
}

/// The peak memory in bytes of a process that generates a few tokens.
fn peak_memory(dir: &TestDir, model: &Path) -> f64 {
    let model = model.display().to_string();
    let output = dir.run(&["generate", &model, "One", "--max-tokens", "3", "--json"]);
    json_lines(&output)[0]["peak_memory_bytes"]
        .as_f64()
        .unwrap()
}

#[test]
fn generation_takes_the_memory_of_the_quantized_weights_and_little_more() {
    let dir = TestDir::new();
    let letters = root().join("docs/models/letters");
    let small = ModelDir::open(&letters).unwrap();
    let config = ModelConfig {
        d_model: 1024,
        d_ff: Some(4096),
        n_layers: 8,
        n_heads: 16,
        n_kv_heads: Some(16),
        context_length: 1024,
        ..presets::llama_like(small.config.vocab_size)
    };
    let folder = dir.path("large");
    let tokenizer = std::fs::read_to_string(small.tokenizer_path()).unwrap();
    std::fs::create_dir(&folder).unwrap();
    ModelDir::write_small_files(&folder, &config, &tokenizer, &small.card).unwrap();
    let source = FourBits(weights::layout(&config));
    write_source(&folder.join("model.safetensors"), &config, &source).unwrap();
    let gguf = dir.path("large.gguf");
    let [from, to] = [&folder, &gguf].map(|path| path.display().to_string());
    let output = dir.run(&["export", &from, "--format", "gguf", "--out", &to]);
    assert!(output.status.success(), "{}", stderr(&output));

    let without_weights = peak_memory(&dir, &letters);
    for (model, file) in [
        (&folder, folder.join("model.safetensors")),
        (&gguf, gguf.clone()),
    ] {
        let size = std::fs::metadata(&file).unwrap().len() as f64;
        let share = (peak_memory(&dir, model) - without_weights) / size;
        println!("{}: {share:.3} of {size} bytes", model.display());
        // Buffers take a part of it that does not grow with the weights; another copy of these would make 2.
        assert!(size > 70e6 && share < 1.6, "{}: {share}", model.display());
    }
}

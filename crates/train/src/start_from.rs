//! What `start_from` may name.

use std::path::Path;

use nextword_model::ModelError;

/// Checks that `start_from` is a folder, which may still have no model.
pub(crate) fn check_model_dir(path: &Path) -> Result<(), ModelError> {
    let shown = path.display();
    let problem = if path.is_file() {
        format!(
            "is a file, but training starts from a model folder; hint: convert a GGUF file with `nextword import \
             {shown} --dequantize --out FOLDER`, and set start_from = \"FOLDER\""
        )
    } else if matches!(path.try_exists(), Ok(false)) {
        // The working directory may have been put before the name.
        match shown.to_string().split_once("hf:") {
            Some((_, name)) => format!(
                "does not exist; hint: start_from names a local folder: download and convert the model with \
                 `nextword import hf:{name} --out FOLDER`, and set start_from = \"FOLDER\""
            ),
            None => {
                "does not exist; hint: set start_from to a run folder, e.g. runs/NAME, or a model folder".to_string()
            }
        }
    } else {
        return Ok(());
    };
    Err(ModelError::Format {
        path: path.to_path_buf(),
        problem,
    })
}

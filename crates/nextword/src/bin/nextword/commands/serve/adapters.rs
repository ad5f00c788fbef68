//! The adapters that a server offers beside its models: which base each belongs to, and how they are read again.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use nextword_generate::TextGenerator;
use nextword_model::{AdapterDir, BaseModel, ModelDir};
use nextword_server::{Adapters, LoadedAdapter, LoadedModel};

use super::{ServeArgs, announce, default_name, with_history};
use crate::format::sanitize;
use crate::{exit, models, output};

/// A served model that adapters can share.
struct Base {
    name: String,
    dir: ModelDir,
    generator: TextGenerator,
    description: BaseModel,
}

/// An adapter that was named on the command line or found in the folder of adapters.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// Where the adapters come from.
pub(super) struct AdapterSources {
    named: Vec<Source>,
    folder: Option<PathBuf>,
    /// Whether the last adapters of runs are used instead of the best.
    last: bool,
    bases: Vec<Base>,
}

/// Everything that a server begins with.
pub(super) struct Loaded {
    pub(super) models: Vec<LoadedModel>,
    pub(super) adapters: Vec<LoadedAdapter>,
    pub(super) sources: AdapterSources,
}

impl AdapterSources {
    /// Loads the adapters `named` and those in the folder of adapters. `loaded` are the models that are served in any
    /// case, with their folders. A base that is not among them is added.
    ///
    /// # Errors
    /// If an adapter is damaged or its base is not found.
    pub(super) fn load(
        args: &ServeArgs,
        loaded: Vec<(LoadedModel, ModelDir)>,
        named: Vec<Source>,
        device: &Device,
    ) -> anyhow::Result<Loaded> {
        let mut sources = Self {
            named,
            folder: args.adapters.clone(),
            last: args.last,
            bases: Vec::new(),
        };
        let all = sources.all()?;
        let mut models = Vec::new();
        for (model, dir) in loaded {
            // Describing a model reads its weights once more.
            if !all.is_empty() || sources.folder.is_some() {
                sources.add_base(&model, dir)?;
            }
            models.push(model);
        }
        let mut adapters = Vec::new();
        for source in all {
            let dir = AdapterDir::open(&models::find(&source.path, args.last)?)?;
            if !dir.is_low_rank() {
                models.push(sources.open_separately(args, &source, &dir, device)?);
                sources.named.retain(|other| other.name != source.name);
                continue;
            }
            if sources.base(&dir).is_none() {
                let base = nextword_convert::find_base(&dir, args.base.path())?;
                let base = args.mapping.apply(base);
                let name = default_name(&base.path, &base.card.name);
                let model = args.open_model(name, &base, device)?;
                announce(&model, &format!(", the base of `{}`", source.name));
                sources.add_base(&model, base)?;
                models.push(model);
            }
            let adapter = sources.open(&source)?;
            announce(
                adapter.model(),
                &format!(", an adapter of `{}`", adapter.base()),
            );
            adapters.push(adapter);
        }
        Ok(Loaded {
            models,
            adapters,
            sources,
        })
    }

    /// Whether the adapters are read again on a signal.
    pub(super) fn are_watched(&self) -> bool {
        self.folder.is_some()
    }

    /// Reads all adapters again and replaces those of a running server. One that cannot be read stays as it is.
    pub(super) fn reload(&self, adapters: &Adapters) {
        let (mut loaded, mut unchanged) = (Vec::new(), Vec::new());
        let sources = match self.all() {
            Ok(sources) => sources,
            Err(error) => return warn(&error, "the adapters stay as they are"),
        };
        for source in sources {
            match self.open(&source) {
                Ok(adapter) => loaded.push(adapter),
                Err(error) => {
                    warn(&error, &format!("`{}` stays as it is", source.name));
                    unchanged.push(source.name);
                }
            }
        }
        if let Err(error) = adapters.replace(loaded, &unchanged) {
            return warn(&error.into(), "the adapters stay as they are");
        }
        let names = adapters.names();
        let names = names.iter().map(|name| format!("`{name}`"));
        let names = names.collect::<Vec<_>>().join(", ");
        output::eprint_line(&sanitize(&format!("adapters: {names}")));
    }

    /// The named adapters, then those in the folder by name.
    fn all(&self) -> anyhow::Result<Vec<Source>> {
        let named = self.named.iter().map(|source| Source {
            name: source.name.clone(),
            path: source.path.clone(),
        });
        let mut sources: Vec<Source> = named.collect();
        let Some(folder) = &self.folder else {
            return Ok(sources);
        };
        let entries = fs::read_dir(folder).map_err(|error| {
            exit::usage(format!(
                "the adapters in `{}` cannot be read: {error}; hint: pass a folder of adapter folders",
                folder.display()
            ))
        })?;
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| self.is_adapter(path))
            .collect();
        paths.sort();
        sources.extend(paths.into_iter().map(|path| Source {
            name: folder_name(&path),
            path,
        }));
        Ok(sources)
    }

    /// Whether `path` is an adapter folder, or a run of one.
    fn is_adapter(&self, path: &Path) -> bool {
        // Hidden folders are written and renamed.
        let is_hidden = folder_name(path).starts_with('.');
        let is_adapter =
            || models::find(path, self.last).is_ok_and(|path| AdapterDir::is_adapter(&path));
        !is_hidden && is_adapter()
    }

    fn add_base(&mut self, model: &LoadedModel, dir: ModelDir) -> anyhow::Result<()> {
        if dir.base().is_none() {
            self.bases.push(Base {
                name: model.name().to_string(),
                description: BaseModel::of(&dir)?,
                dir,
                generator: model.generator().clone(),
            });
        }
        Ok(())
    }

    /// The served base of `adapter`: preferably with the same weights, otherwise their quantized form.
    fn base(&self, adapter: &AdapterDir) -> Option<&Base> {
        let expected = &adapter.base;
        let mut fitting = self
            .bases
            .iter()
            .filter(|base| nextword_convert::is_base(expected, &base.description, &base.dir));
        let first = fitting.clone().next();
        let is_same = |base: &&Base| base.description.weights_sha256 == expected.weights_sha256;
        fitting.find(is_same).or(first)
    }

    /// Loads an adapter of a served base.
    fn open(&self, source: &Source) -> anyhow::Result<LoadedAdapter> {
        let dir = AdapterDir::open(&models::find(&source.path, self.last)?)?;
        let base = self.base(&dir).ok_or_else(|| {
            exit::bad_file(format!(
                "`{}` was made for {}, which is not served; hint: restart the server with it",
                source.path.display(),
                nextword_convert::describe_base(&dir.base)
            ))
        })?;
        let served = (&*base.name, &base.generator);
        let adapter = LoadedAdapter::with_base(source.name.clone(), &dir, served, &base.dir)?;
        Ok(adapter.map_model(|model| with_history(model.with_alias(dir.card.name), &source.path)))
    }

    /// Loads an adapter with weights of its own, because it changes more than it adds.
    fn open_separately(
        &self,
        args: &ServeArgs,
        source: &Source,
        dir: &AdapterDir,
        device: &Device,
    ) -> anyhow::Result<LoadedModel> {
        let (base, parent) = match self.base(dir) {
            Some(base) => (base.dir.clone(), Some(base.name.clone())),
            None => (nextword_convert::find_base(dir, args.base.path())?, None),
        };
        let model_dir = args.mapping.apply(dir.clone().with_base(base)?);
        let mut model = args.open_model(source.name.clone(), &model_dir, device)?;
        model = with_history(model.with_alias(&*dir.card.name), &source.path);
        if let Some(parent) = parent {
            model = model.with_parent(parent);
        }
        announce(
            &model,
            ", with weights of its own: adapters with DoRA or modules_to_save cannot share those of their base",
        );
        Ok(model)
    }
}

fn folder_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn warn(error: &anyhow::Error, effect: &str) {
    let error = exit::message(error);
    output::eprint_line(&sanitize(&format!("warning: {effect}: {error}")));
}

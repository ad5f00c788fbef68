//! The models that requests can name.

use std::sync::{Arc, PoisonError, RwLock};

use crate::ServerError;
use crate::api_error::ApiError;
use crate::loaded_adapter::LoadedAdapter;
use crate::loaded_model::Model;

/// Models with engines of their own, and adapters, which can be replaced while the server runs. Requests in
/// progress keep the model that they began with.
#[derive(Debug, Default)]
pub(crate) struct Models {
    with_engines: Vec<Arc<Model>>,
    adapters: RwLock<Vec<Arc<Model>>>,
    /// The name of the model for requests that name none; otherwise the first one.
    default: Option<String>,
}

impl Models {
    pub(crate) fn new(with_engines: Vec<Arc<Model>>, default: Option<String>) -> Self {
        Self {
            with_engines,
            adapters: RwLock::default(),
            default,
        }
    }

    /// All models: those with engines, then the adapters.
    pub(crate) fn all(&self) -> Vec<Arc<Model>> {
        let adapters = self.adapters.read();
        let adapters = adapters.unwrap_or_else(PoisonError::into_inner);
        self.with_engines
            .iter()
            .chain(&*adapters)
            .cloned()
            .collect()
    }

    /// The models that have an engine of their own.
    pub(crate) fn with_engines(&self) -> &[Arc<Model>] {
        &self.with_engines
    }

    /// The model called `name`, else the first one with that alias. Without a name, the default.
    ///
    /// # Errors
    /// 404 with the names that exist.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let models = self.all();
        let by_name = |name: &str| models.iter().find(|model| model.name == name);
        let by_alias = |name: &str| {
            let mut models = models.iter();
            models.find(|model| model.alias.as_deref() == Some(name))
        };
        let found = match name {
            None => {
                let default = self.default.as_deref().and_then(by_name);
                default.or(models.first())
            }
            Some(name) => by_name(name).or_else(|| by_alias(name)),
        };
        found.cloned().ok_or_else(|| {
            let available: Vec<String> = models.iter().map(|m| m.name.clone()).collect();
            ApiError::unknown_model(name.unwrap_or(""), &available)
        })
    }

    /// See [`Adapters::replace`].
    fn replace(&self, new: Vec<LoadedAdapter>, unchanged: &[String]) -> Result<(), ServerError> {
        let mut adapters = self
            .adapters
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let kept = adapters.iter().filter(|old| unchanged.contains(&old.name));
        let mut next: Vec<Arc<Model>> = kept.cloned().collect();
        for loaded in new {
            let base = loaded.base().to_string();
            let mut bases = self.with_engines.iter();
            let Some(base) = bases.find(|model| model.name == base) else {
                let name = loaded.name().to_string();
                return Err(ServerError::UnknownBase { name, base });
            };
            let model = base.generator.model();
            model.check_row_adapter(&loaded.adapter)?;
            let (engine, adapter) = (base.engine.clone(), Some(loaded.adapter));
            let mut model = Model::new(loaded.model, engine, adapter);
            let mut others = self.with_engines.iter().chain(&next);
            if others.any(|other| other.name == model.name) {
                return Err(ServerError::DuplicateName { name: model.name });
            }
            if let Some(earlier) = adapters.iter().find(|old| old.name == model.name) {
                model = model.with_metrics_of(earlier);
            }
            next.push(Arc::new(model));
        }
        next.sort_by(|a, b| a.name.cmp(&b.name));
        *adapters = next;
        Ok(())
    }
}

/// The adapters of a server. See [`LoadedAdapter`](crate::LoadedAdapter) for an example.
#[derive(Clone)]
pub struct Adapters(pub(crate) Arc<Models>);

impl Adapters {
    /// Replaces all adapters, except those whose names are in `unchanged`, with `adapters`. New requests use these;
    /// those in progress finish with the earlier ones. The metrics of a name continue.
    ///
    /// # Errors
    /// [`ServerError::UnknownBase`] if a base is not served; [`ServerError::DuplicateName`] if a name is taken;
    /// [`ServerError::Model`] if an adapter does not fit its base. Then nothing is replaced.
    pub fn replace(
        &self,
        adapters: Vec<LoadedAdapter>,
        unchanged: &[String],
    ) -> Result<(), ServerError> {
        self.0.replace(adapters, unchanged)
    }

    /// The names of the adapters.
    pub fn names(&self) -> Vec<String> {
        let models = self.0.all();
        let adapters = models.iter().filter(|model| model.adapter.is_some());
        adapters.map(|model| model.name.clone()).collect()
    }
}

impl std::fmt::Debug for Adapters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

//! Where the Hub and its cache are, from the environment variables that `huggingface_hub` reads.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::HubError;
use crate::url::Url;

/// The Hub, unless `HF_ENDPOINT` names another server.
const ENDPOINT: &str = "https://huggingface.co";

/// Maximum size in bytes of the file with the token.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Access token of a user. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes the token from `text`, without white space around it. `None` if nothing else is in it.
    ///
    /// # Errors
    /// The problem, without the text, if it has characters that cannot be part of a token.
    pub fn new(text: &str) -> Result<Option<Self>, &'static str> {
        let text = text.trim();
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err(
                "contains white space or characters outside ASCII, so that it is not a token; hint: copy the \
                 token again from https://huggingface.co/settings/tokens",
            );
        }
        Ok((!text.is_empty()).then(|| Self(text.to_string())))
    }

    /// The value of the header `Authorization`.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where to download from and to, and how patiently.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// The server's address, such as `https://huggingface.co`, without a slash at the end.
    pub endpoint: String,
    /// The cache folder.
    pub cache: PathBuf,
    /// The token, which is sent to the endpoint only.
    pub token: Option<Token>,
    /// Whether only the cache is used.
    pub offline: bool,
    /// File with root certificates (PEM) to trust instead of Mozilla's.
    pub certificates: Option<PathBuf>,
    /// Whether the proxy of the environment is used (`HTTPS_PROXY` and the like).
    pub use_proxy: bool,
    /// Time after which a connection without data counts as broken.
    pub stall_timeout: Duration,
    /// Pause before the first repetition of a failed request; it doubles with each further one.
    pub retry_delay: Duration,
}

impl HubSettings {
    /// Reads the settings of `huggingface_hub` from the environment: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and their older names, and `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// [`HubError::Setting`] if a variable has an invalid value or no home folder is known.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// As [`from_env`](Self::from_env), with `variable` in place of the environment.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    ///
    /// ```
    /// use nextword_hub::HubSettings;
    ///
    /// let settings = HubSettings::from_variables(|name| (name == "HF_HOME").then(|| "/data/hf".into()))?;
    /// assert_eq!(settings.cache, std::path::Path::new("/data/hf").join("hub"));
    /// assert_eq!(settings.endpoint, "https://huggingface.co");
    /// # Ok::<(), nextword_hub::HubError>(())
    /// ```
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let value = |name: &str| variable(name).filter(|value| !value.is_empty());
        let is_true = |name: &str| {
            let value = value(name).unwrap_or_default();
            let value = value.to_string_lossy().to_uppercase();
            ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
        };
        let user = value(if cfg!(windows) { "USERPROFILE" } else { "HOME" });
        let user = user.map(PathBuf::from);
        let path = |name: &str| value(name).map(|value| expand_home(value, user.as_deref()));
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME");
            let caches = caches.or_else(|| Some(user.as_deref()?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let in_home = |name: &str| home.as_deref().map(|home| home.join(name));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| in_home("hub"));
        let cache = cache.ok_or_else(|| {
            setting(
                "HF_HOME",
                "is not set, and no home folder is known; hint: set it to the folder of the cache",
            )
        })?;
        let token_path = path("HF_TOKEN_PATH").or_else(|| in_home("token"));
        let token = if is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            None
        } else {
            match token_in_variables(value)? {
                Some(token) => Some(token),
                None => token_path.as_deref().map_or(Ok(None), token_in_file)?,
            }
        };
        let endpoint = value("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let endpoint = endpoint.to_string_lossy();
        let endpoint = endpoint.trim_end_matches('/').to_string();
        Url::parse(&endpoint).map_err(|problem| {
            let hint = format!("hint: set it to an address such as {ENDPOINT}");
            setting(
                "HF_ENDPOINT",
                format!("is {endpoint:?}, which {problem}; {hint}"),
            )
        })?;
        Ok(Self {
            endpoint,
            cache,
            token,
            offline: is_true("HF_HUB_OFFLINE")
                || (value("HF_HUB_OFFLINE").is_none() && is_true("TRANSFORMERS_OFFLINE")),
            certificates: path("SSL_CERT_FILE"),
            use_proxy: true,
            stall_timeout: Duration::from_secs(30),
            retry_delay: Duration::from_secs(1),
        })
    }
}

fn setting(variable: &'static str, problem: impl Into<String>) -> HubError {
    HubError::Setting {
        variable,
        problem: problem.into(),
    }
}

/// The path in `value`, with `~` at its beginning replaced by the user's folder.
fn expand_home(value: OsString, user: Option<&Path>) -> PathBuf {
    let path = PathBuf::from(value);
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

fn token_in_variables(value: impl Fn(&str) -> Option<OsString>) -> Result<Option<Token>, HubError> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        let text = value(name).unwrap_or_default();
        let token = Token::new(&text.to_string_lossy());
        if let Some(token) = token.map_err(|problem| setting(name, problem))? {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

fn token_in_file(path: &Path) -> Result<Option<Token>, HubError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(HubError::io(path, "read")(error)),
    };
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES)
        .read_to_string(&mut text)
        .map_err(HubError::io(path, "read"))?;
    Token::new(&text).map_err(|problem| {
        let shown = path.display();
        setting("HF_TOKEN_PATH", format!("({shown}) {problem}"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<HubSettings, HubError> {
        HubSettings::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| value.into())
        })
    }

    #[cfg(unix)]
    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        for (variables, cache) in [
            (vec![("HOME", "/u")], "/u/.cache/huggingface/hub"),
            (
                vec![("HOME", "/u"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (vec![("HOME", "/u"), ("HF_HOME", "~/hf")], "/u/hf/hub"),
            (vec![("HF_HOME", "/hf")], "/hf/hub"),
            (
                vec![("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")],
                "/old",
            ),
            (
                vec![("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")],
                "/c",
            ),
            (
                vec![("HOME", "/u"), ("HF_HUB_CACHE", "")],
                "/u/.cache/huggingface/hub",
            ),
        ] {
            assert_eq!(
                read(&variables).unwrap().cache,
                Path::new(cache),
                "{variables:?}"
            );
        }
        let error = read(&[]).unwrap_err().to_string();
        assert!(error.contains("HF_HOME"), "{error}");
    }

    #[test]
    fn the_token_comes_from_the_environment_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let token = |more: &[(&str, &str)]| {
            let mut variables = vec![("HF_HOME", home)];
            variables.extend(more);
            read(&variables).map(|settings| settings.token.map(|token| token.header()))
        };
        assert_eq!(token(&[]).unwrap(), None);
        std::fs::write(folder.path().join("token"), "hf_file\r\n").unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, " hf_other\n").unwrap();
        let other = other.to_str().unwrap();
        let bearer = |token: &str| Some(format!("Bearer {token}"));
        assert_eq!(token(&[]).unwrap(), bearer("hf_file"));
        assert_eq!(
            token(&[("HF_TOKEN_PATH", other)]).unwrap(),
            bearer("hf_other")
        );
        assert_eq!(
            token(&[("HF_TOKEN", " hf_env\n")]).unwrap(),
            bearer("hf_env")
        );
        assert_eq!(
            token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).unwrap(),
            None
        );
        for invalid in ["hf_secret\r\nX: y", "hf_sécret", "hf secret"] {
            let error = token(&[("HF_TOKEN", invalid)]).unwrap_err().to_string();
            assert!(
                error.contains("HF_TOKEN") && !error.contains("cret"),
                "{error}"
            );
        }
        let settings = read(&[("HF_HOME", home), ("HF_TOKEN", "hf_secret")]).unwrap();
        assert!(!format!("{settings:?}").contains("hf_secret"));
    }

    #[test]
    fn endpoint_and_offline_mode_are_read() {
        let with = |more: (&str, &str)| read(&[("HF_HOME", "/h"), more]);
        for (value, endpoint) in [
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
            ("https://mirror.example/hf//", "https://mirror.example/hf"),
        ] {
            assert_eq!(with(("HF_ENDPOINT", value)).unwrap().endpoint, endpoint);
        }
        for value in [
            "huggingface.co",
            "ftp://a",
            "http://",
            "https://u:p@a",
            "http://a b",
        ] {
            let error = with(("HF_ENDPOINT", value)).unwrap_err().to_string();
            assert!(error.contains("HF_ENDPOINT"), "{error}");
        }
        for (name, value, offline) in [
            ("HF_HUB_OFFLINE", "1", true),
            ("HF_HUB_OFFLINE", "yes", true),
            ("HF_HUB_OFFLINE", "0", false),
            ("TRANSFORMERS_OFFLINE", "True", true),
            ("OTHER", "1", false),
        ] {
            assert_eq!(
                with((name, value)).unwrap().offline,
                offline,
                "{name}={value}"
            );
        }
    }
}

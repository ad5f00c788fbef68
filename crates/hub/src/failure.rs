//! What a failed request means for the user.

use crate::HubError;
use crate::client::{Failure, StatusFailure};

/// What was requested.
pub(crate) struct Subject<'a> {
    pub(crate) endpoint: &'a str,
    pub(crate) repository: &'a str,
    pub(crate) revision: &'a str,
    /// `None` if it is the list of files.
    pub(crate) file: Option<&'a str>,
    /// Whether a token was sent.
    pub(crate) has_token: bool,
}

/// Where tokens are created.
const TOKENS: &str = "https://huggingface.co/settings/tokens";

/// Turns `failure` into an error with the fact and a hint.
pub(crate) fn describe(failure: Failure, subject: &Subject<'_>) -> HubError {
    match failure {
        Failure::Unreachable(problem) => HubError::Network {
            problem: format!(
                "the Hub cannot be reached: {problem}; hint: check the network and HF_ENDPOINT"
            ),
        },
        Failure::Interrupted(problem) => HubError::Network {
            problem: format!(
                "the download failed several times: {problem}; hint: run the command again later; it continues \
                 where this one stopped"
            ),
        },
        Failure::WrongContent { file, what } => HubError::WrongContent {
            repository: subject.repository.to_string(),
            file,
            what,
        },
        Failure::Status(failed) => describe_status(&failed, subject),
        Failure::Final(error) => error,
    }
}

fn describe_status(failed: &StatusFailure, subject: &Subject<'_>) -> HubError {
    let Subject {
        endpoint,
        repository,
        revision,
        has_token,
        ..
    } = subject;
    let denied = |problem: String| HubError::Denied { problem };
    let not_found = |problem: String| HubError::NotFound { problem };
    match (failed.status, failed.code.as_str()) {
        (_, "GatedRepo") => denied(format!(
            "access to `{repository}` is granted only to users who accepted its terms; hint: {}",
            if *has_token {
                format!(
                    "accept them at {endpoint}/{repository} with the account that the token belongs to, and let the \
                     token read gated repositories"
                )
            } else {
                format!(
                    "accept them at {endpoint}/{repository}, and set HF_TOKEN to a token of your account ({TOKENS})"
                )
            }
        )),
        (401 | 404, "RepoNotFound") | (401, _) if *has_token => not_found(format!(
            "`{repository}` does not exist, or the token may not read it; hint: check the name, and the token (HF_TOKEN \
             or the file `token`)"
        )),
        (401 | 404, "RepoNotFound") | (401, _) => not_found(format!(
            "`{repository}` does not exist or is private; hint: check the name, or set HF_TOKEN to a token that may \
             read it ({TOKENS})"
        )),
        (403, _) => denied(format!(
            "{} refuses access to `{repository}`{}; hint: check that the token (HF_TOKEN) may read it, and your \
             network's rules",
            failed.url.host(),
            said(&failed.message)
        )),
        (404, "EntryNotFound") => missing_file(subject),
        (404, "RevisionNotFound") => not_found(format!(
            "`{repository}` has no revision `{revision}`; hint: its branches and tags are listed at \
             {endpoint}/{repository}/tree/main"
        )),
        (404, _) if subject.file.is_some() => missing_file(subject),
        (404, _) => not_found(format!(
            "`{repository}` with the revision `{revision}` does not exist; hint: check both names, and HF_ENDPOINT"
        )),
        (429, _) => HubError::Network {
            problem: format!(
                "{} limits the number of requests; hint: wait some minutes{}",
                failed.url.host(),
                if *has_token {
                    ""
                } else {
                    ", or set HF_TOKEN, which raises the limit"
                }
            ),
        },
        (status @ 500.., _) => HubError::Network {
            problem: format!(
                "{} answers with status {status}{}; hint: run the command again later; it continues where this one \
                 stopped",
                failed.url.host(),
                said(&failed.message)
            ),
        },
        (status, _) => {
            let problem = format!(
                "answers with status {status}{}; hint: check HF_ENDPOINT",
                said(&failed.message)
            );
            HubError::server(&failed.url, problem)
        }
    }
}

fn missing_file(subject: &Subject<'_>) -> HubError {
    let Subject {
        repository,
        revision,
        ..
    } = subject;
    let file = subject.file.unwrap_or("file");
    HubError::NotFound {
        problem: format!(
            "`{repository}` has no `{file}` at `{revision}`, although its list names it; hint: try again later"
        ),
    }
}

/// The server's message in parentheses.
fn said(message: &str) -> String {
    let plain: String = message.chars().filter(|c| !c.is_control()).collect();
    if plain.is_empty() {
        plain
    } else {
        format!(" ({plain})")
    }
}

use super::*;

fn io(action: &'static str, kind: ErrorKind) -> TrainError {
    TrainError::Io {
        path: "x".into(),
        action,
        source: kind.into(),
    }
}

#[test]
fn each_error_class_maps_to_its_exit_code() {
    let path = || "x".into();
    let config = ModelError::Config {
        key: "n_heads",
        problem: String::new(),
        hint: String::new(),
    };
    let mismatch = ModelError::Mismatch {
        path: path(),
        problems: Vec::new(),
    };
    let diverged = TrainError::Diverged {
        step: 1,
        learning_rate: 1.0,
        loss: f64::NAN,
        history: String::new(),
        first: String::new(),
        checkpoint: None,
    };
    let cases: Vec<(anyhow::Error, Code)> = vec![
        (config.into(), Code::Usage),
        (mismatch.into(), Code::BadFile),
        (diverged.into(), Code::Diverged),
        (io("read", ErrorKind::NotFound).into(), Code::BadFile),
        (io("write", ErrorKind::PermissionDenied).into(), Code::Usage),
        (io("create", ErrorKind::NotFound).into(), Code::Usage),
        (io("write", ErrorKind::StorageFull).into(), Code::Resources),
        (DataError::Missing { path: path() }.into(), Code::BadFile),
        (
            TrainError::Data(DataError::Empty { path: path() }).into(),
            Code::BadFile,
        ),
        (usage("x"), Code::Usage),
        (bad_file("x"), Code::BadFile),
        (anyhow::anyhow!("x"), Code::Failure),
    ];
    for (error, expected) in cases {
        assert_eq!(code(&error), expected, "{error}");
        assert_eq!(code(&error.context("around it")), expected);
    }
}

#[test]
fn a_panic_becomes_a_one_line_error() {
    let result: anyhow::Result<()> = catch_panics(|| panic!("two\nlines"));
    drop(std::panic::take_hook());
    let text = result.unwrap_err().to_string();
    assert!(
        text.contains("two lines (") && !text.contains('\n'),
        "{text}"
    );
}

/// Panics on another thread, and emits an event. Does nothing unless the test below starts it in a
/// process of its own, since hook and subscriber are global.
#[test]
fn child_process_that_panics_on_a_thread() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    crate::logging::init(false);
    let result = catch_panics(|| {
        let thread = std::thread::spawn(|| panic!("three\nmore lines"));
        assert!(thread.join().is_err());
        tracing::error!("an event of a library");
        tracing::info!("a detail");
        Ok(())
    });
    assert!(result.is_ok());
    let result: anyhow::Result<()> = catch_panics(|| {
        let message = "out of device memory allocating 4096 bytes";
        let thread = std::thread::spawn(move || panic!("{message}"));
        assert!(thread.join().is_err());
        panic!("a closed channel")
    });
    let error = result.unwrap_err();
    assert_eq!(code(&error), Code::Resources, "{error}");
    assert!(error.to_string().contains("4096 bytes"), "{error}");
    assert!(catch_panics(|| Ok(())).is_ok());
}

const CHILD: &str = "NEXTWORD_TEST_CHILD";

#[test]
fn thread_panics_and_events_are_printed_once() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["child_process_that_panics_on_a_thread", "--nocapture"])
        .env(CHILD, "1")
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let errors = String::from_utf8(child.stderr).unwrap();
    assert!(child.status.success(), "{errors}");
    let panics: Vec<&str> = errors
        .lines()
        .filter(|line| line.contains("three more lines"))
        .collect();
    assert!(
        matches!(panics[..], [line] if line.starts_with("internal error (bug in nextword): three")
            && line.contains("tests.rs:")),
        "{errors}"
    );
    let event = |text: &str| errors.matches(text).count();
    assert_eq!(event("an event of a library"), 1, "{errors}");
    assert_eq!(event("a detail"), 0, "{errors}");
}

#[test]
fn message_does_not_repeat_a_cause() {
    let error = anyhow::Error::from(io("read", ErrorKind::NotFound));
    let text = message(&error);
    assert_eq!(text.matches("not found").count(), 1, "{text}");
    let text = message(&usage("no such thing").context("cannot plot"));
    assert_eq!(text, "cannot plot: no such thing");
}

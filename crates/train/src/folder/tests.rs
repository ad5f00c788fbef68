use super::*;

#[test]
fn paths_within_the_project_are_relative_to_the_run() {
    let base = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let path = |name: &str| base.path().join(name);
    fs::create_dir_all(path("runs/a")).unwrap();
    fs::create_dir_all(path("data")).unwrap();
    for file in ["data/x.txt", "runs/a/tokenizer.json", "y.txt"] {
        fs::write(path(file), "").unwrap();
    }
    fs::write(other.path().join("z.txt"), "").unwrap();
    let portable = |file: PathBuf| portable_path(&file, &path("runs/a"), base.path());
    for (file, expected) in [
        ("data/x.txt", Some("../../data/x.txt")),
        ("runs/a/tokenizer.json", Some("tokenizer.json")),
        ("y.txt", Some("../../y.txt")),
        ("missing.txt", None),
    ] {
        assert_eq!(portable(path(file)), expected.map(PathBuf::from), "{file}");
    }
    assert_eq!(portable(other.path().join("z.txt")), None);
    // A file of the run moves with it, wherever the run was started.
    for elsewhere in [other.path(), Path::new("/"), &path("data")] {
        let own = path("runs/a/tokenizer.json");
        let found = portable_path(&own, &path("runs/a"), elsewhere);
        assert_eq!(found.as_deref(), Some(Path::new("tokenizer.json")));
        assert_eq!(
            portable_path(&path("y.txt"), &path("runs/a"), elsewhere),
            None
        );
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(other.path(), path("linked")).unwrap();
        assert_eq!(portable(path("linked/z.txt")), None);
        assert_eq!(
            portable_path(&path("y.txt"), &path("linked"), base.path()),
            None
        );
    }
    assert_eq!(
        portable_path(&path("y.txt"), &path("runs/a"), Path::new("/")),
        None
    );
}

#[test]
fn stored_relative_paths_stay_relative() {
    // Not in the working directory of the tests.
    let base = tempfile::tempdir().unwrap();
    let run = base.path().join("runs/a");
    for (file, text) in [("x.txt", "x"), ("y.txt", "y"), ("runs/a/own.json", "{}")] {
        let file = base.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let mut config = RunConfig::default();
    config.data.paths = vec!["../../x.txt".into(), "../../missing.txt".into()];
    config.validation.also = vec![crate::OtherText {
        name: "general".to_string(),
        path: "../../x.txt".into(),
    }];
    fs::write(run.join("run.toml"), to_toml(&config).unwrap()).unwrap();
    let (folder, mut config) = RunFolder::open(&run).unwrap();
    assert!(config.data.paths.iter().all(|path| path.is_absolute()));
    let text = config.validation.also[0].path.clone();
    assert_eq!(text, canonical(&base.path().join("x.txt")));
    config.train.steps += 1;
    config.data.paths.push(base.path().join("y.txt"));
    config.data.tokenizer.file = Some(run.join("own.json"));
    folder.write_config(&config).unwrap();
    let stored = folder.parse_config().unwrap();
    let absolute = base.path().join("y.txt");
    assert_eq!(
        stored.data.paths,
        [
            Path::new("../../x.txt"),
            Path::new("../../missing.txt"),
            &absolute
        ]
    );
    let text = &stored.validation.also[0];
    assert_eq!(text.path, Path::new("../../x.txt"));
    let own = stored.data.tokenizer.file;
    assert_eq!(own.as_deref(), Some(Path::new("own.json")));
    assert_eq!(stored.train.steps, config.train.steps);
}

#[test]
fn the_device_of_a_rank_or_of_a_resume_is_not_stored() {
    let base = tempfile::tempdir().unwrap();
    let on = |device: &str| RunConfig {
        device: device.to_string(),
        ..RunConfig::default()
    };
    let folder = RunFolder::create(&base.path().join("run"), &on("cuda")).unwrap();
    folder.detach_from_source(&on("cuda:0"), "{}").unwrap();
    let stored = folder.read_config().unwrap();
    assert_eq!(stored.device, "cuda");
    assert!(stored.data.tokenizer.file.is_some()); // It was written again.
}

#[cfg(unix)]
#[test]
fn a_removed_moved_or_replaced_folder_is_noticed() {
    type Change = fn(&Path);
    let base = tempfile::tempdir().unwrap();
    let changes: [Change; 5] = [
        |run| fs::remove_dir_all(run).unwrap(),
        |run| fs::rename(run, run.with_extension("moved")).unwrap(),
        |run| fs::remove_file(run.join("run.toml")).unwrap(),
        |run| {
            fs::rename(run, run.with_extension("earlier")).unwrap();
            fs::create_dir(run).unwrap();
            fs::write(run.join("run.toml"), "").unwrap();
        },
        |run| {
            fs::remove_dir_all(run).unwrap();
            RunFolder::create(run, &RunConfig::default()).unwrap();
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let run = base.path().join(n.to_string());
        let folder = RunFolder::create(&run, &RunConfig::default()).unwrap();
        folder.check_exists().unwrap();
        change(&run);
        let error = folder.check_exists().unwrap_err();
        assert!(
            matches!(error, TrainError::FolderRemoved { .. }),
            "{n}: {error}"
        );
    }
    let folder = RunFolder::create(&base.path().join("kept"), &RunConfig::default()).unwrap();
    fs::remove_file(folder.path().join(LOCK)).unwrap(); // Nothing else depends on this file.
    folder.check_exists().unwrap();
}

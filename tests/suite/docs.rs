//! The README does what it says: its examples run, its tables are the program's.

use std::fs;
use std::path::Path;

use super::bench::{BINARY, Bench, Run, on_every_store};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// A line that is typed, and what is shown below it.
struct Example {
    typed: String,
    shown: String,
}

/// Examples in the README's `console` blocks, in order.
fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut is_inside = false;
    for line in readme().lines() {
        match (is_inside, line) {
            (false, "```console") => is_inside = true,
            (true, "```") => is_inside = false,
            (true, line) => match line.strip_prefix("$ ") {
                Some(typed) => examples.push(Example { typed: typed.to_owned(), shown: String::new() }),
                None => examples.last_mut().expect("a line that is typed comes first").shown.extend([line, "\n"]),
            },
            (false, _) => {}
        }
    }
    examples
}

/// Runs of hexadecimal digits that are unique, sequences and times, each replaced by what it is.
fn normalised(text: &str) -> String {
    let mut normal = String::new();
    for word in text.split_inclusive(|character: char| !character.is_ascii_alphanumeric()) {
        let bare = word.trim_end_matches(|character: char| !character.is_ascii_alphanumeric());
        let is_unique = bare.len() == 32 && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_time = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_digit() || b"TZ".contains(&byte));
        normal.push_str(match (is_unique, is_time && bare.len() != 10) {
            (true, _) => "UUID",
            (_, true) if text.contains("WARNING") => "TIME",
            _ => bare,
        });
        normal.push_str(&word[bare.len()..]);
    }
    normal
}

on_every_store!(the_readmes_examples_show_what_they_say,);

fn the_readmes_examples_show_what_they_say(bench: &Bench) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(BINARY, directory.path().join("syncd-spawn")).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let examples = examples();
    assert!(examples.len() >= 10);
    for Example { typed, shown } in examples {
        let mut shell = bench.program("sh", ["-c", &format!("exec 2>&1; {typed}")]);
        shell.env("PATH", &path).env("XDG_RUNTIME_DIR", runtime.path()).current_dir(directory.path());
        let ended = Run::start(shell).finish();
        assert_eq!(normalised(ended.stdout()), normalised(&shown), "$ {typed}");
    }
    assert!(bench.tree().iter().all(|path| !path.contains("__")), "the examples leave nothing: {:?}", bench.tree());
}

#[test]
fn the_readme_names_every_variable_and_status_that_help_names() {
    let help = Bench::on("127.0.0.1:1").run(["--help"]).good();
    let readme = readme();
    let variables = help.stdout().split("[env: ").skip(1).map(|rest| rest.split('=').next().unwrap());
    let variables: Vec<_> = variables.collect();
    assert!(variables.len() >= 9, "{variables:?}");
    for variable in variables {
        assert!(readme.contains(&format!("`{variable}`")), "{variable}");
    }
    for status in ["123", "124", "125", "126"] {
        let is_a_row = readme.lines().any(|line| line.starts_with(&format!("| {status}")));
        assert!(is_a_row && help.stdout().contains(&format!("  {status} ")), "{status}");
    }
}

#[test]
fn the_man_page_names_every_option_and_status_that_help_names() {
    let help = Bench::on("127.0.0.1:1").run(["--help"]).good();
    let page = fs::read_to_string(root().join("contrib/man/syncd-spawn.1")).unwrap().replace("\\-", "-");
    let lines = help.stdout().lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let options = lines.flat_map(str::split_whitespace).filter(|word| word.starts_with("--") && word.len() > 2);
    let options: Vec<_> = options.map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphabetic())).collect();
    assert!(options.len() >= 22, "{options:?}");
    for option in options {
        assert!(page.contains(option), "{option}");
    }
    for status in ["128+n", "123", "124", "125", "126, 127"] {
        assert!(page.lines().any(|line| line == status), "{status}");
    }
}

#[test]
fn the_readmes_links_point_to_its_headings() {
    let readme = readme();
    let anchors: Vec<String> = (readme.lines())
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect();
    for link in readme.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        assert!(anchors.iter().any(|anchor| anchor == link), "#{link} is not among {anchors:?}");
    }
}

#[test]
fn ci_runs_the_readmes_test_command() {
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    let command = "contrib/test";
    assert!(readme().contains(&format!("```sh\n{command}\n```")));
    assert!(ci.lines().any(|line| line == command));
}

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

/// Rows of the tables below a heading of the README.
fn rows_below(heading: &str) -> Vec<String> {
    let readme = readme();
    let section = readme.split(&format!("\n{heading}\n")).nth(1).expect("the heading is there").split("\n#").next().unwrap();
    section.lines().filter(|line| line.starts_with("| ")).skip(1).map(str::to_owned).collect()
}

/// How a row of the migration table begins, and the test that shows it.
const MIGRATION: [(&str, &str); 36] = [
    ("script: TERM or HUP unlocked at once", "a_term_to_the_script_unlocked_while_the_command_ran_on"),
    ("script: TERM while it waited", "a_term_to_the_waiting_script_left_a_contender_that_nobody_owned"),
    ("script: INT or QUIT to it alone", "an_int_or_quit_to_the_script_alone_was_dropped"),
    ("HUP or QUIT left the node", "a_hup_or_quit_to_a_waiting_lockpick_left_its_node"),
    ("KILL left it too", "a_kill_of_a_waiting_lockpick_left_its_node"),
    ("a signal in the moment of the create", "a_signal_right_after_the_create_left_the_node"),
    ("USR1, ALRM and others", "a_usr1_or_alrm_to_a_waiting_lockpick_ended_it_and_left_its_node"),
    ("INT ended a waiting lockpick", "an_int_that_was_ignored_from_the_beginning_ended_a_waiting_lockpick"),
    ("a contender that vanished", "a_contender_that_vanished_while_it_was_listed_failed_the_run_and_left_its_node"),
    ("the limit began again", "the_limit_started_again_at_each_predecessor"),
    ("`-p 0` was a traceback", "a_retry_sleep_of_nothing_was_a_traceback_and_hung"),
    ("script: `-d`, or `DEBUG`", "debug_text_was_mixed_into_the_node_and_the_lock_was_left"),
    ("script: `NOOUT`", "a_noout_in_the_environment_lost_the_node_and_the_lock_was_left"),
    ("script: CONTENT was evaluated", "the_content_was_evaluated"),
    ("script: CONTENT with two blanks", "double_blanks_in_the_content_left_the_lock"),
    ("script: the command was evaluated in the script", "an_exec_or_an_assignment_in_the_command_left_the_lock"),
    ("script: the command found its variables", "the_command_found_what_was_the_scripts_in_its_shell"),
    ("script: bash said `Killed`", "every_option_of_the_script_does_what_the_script_did_with_it"),
    ("script: its words were joined", "arguments_lost_their_quoting"),
    ("script: `-l unlock`", "a_lock_type_that_only_contained_one_deleted_the_node_and_ran_the_command_without_a_lock"),
    ("everybody may read and delete", "each_releases_the_others_nodes"),
    ("`unlock` deleted whatever", "unlock_deleted_whatever_it_was_given"),
    ("`unlock -i ''`", "an_empty_identifier_could_not_be_verified"),
    ("who waited behind the dead", "under_the_old_name_the_line_is_lockpicks"),
    ("`lock` was granted beside readers", "a_lock_was_held_together_with_readers"),
    ("`list` had no order", "list_was_in_no_order_showed_strangers_and_died_of_a_missing_path"),
    ("script: a node that was taken away", "a_node_that_was_removed_under_a_running_command_was_never_noticed"),
    ("script: an unlock that failed", "an_unlock_that_failed_was_a_success"),
    ("script: `Running your command`", "the_scripts_own_lines_were_on_the_commands_standard_output"),
    ("script: its usage said", "the_usage_said_that_retries_are_infinite"),
    ("an identifier that is not ASCII", "an_identifier_that_is_not_ascii_was_an_error"),
    ("no server", "a_server_that_is_not_there_was_a_traceback"),
    ("script: the NODE `/`", "a_node_that_is_the_root_was_a_usage_error_of_lockpick"),
    ("`lock ''` and `lock /`", "what_lockpick_takes_and_cannot_use_is_an_error_in_a_line_and_1"),
    ("script: `NODE`, `CONTENT`", "the_scripts_variables_stand_in_for_its_options_and_no_other_does"),
    ("script: `-z PATH`", "every_option_of_the_script_does_what_the_script_did_with_it"),
];

#[test]
fn what_used_to_happen_has_a_row_in_the_migration_table_and_a_test() {
    let rows = rows_below("### The old names");
    assert_eq!(rows.len(), MIGRATION.len());
    let suites = ["old_bugs", "names", "interop", "orphans"].map(|suite| root().join(format!("tests/suite/{suite}.rs")));
    let tests = suites.map(|suite| fs::read_to_string(suite).unwrap()).concat();
    for (row, (begins, test)) in rows.iter().zip(MIGRATION) {
        assert!(row.starts_with(&format!("| {begins}")) && row.matches(" | ").count() == 2, "{row}");
        assert!(tests.contains(&format!("fn {test}(")), "{test}");
    }
}

#[test]
fn help_the_readme_and_the_man_page_name_the_old_names_and_install() {
    let help = Bench::on("127.0.0.1:1").run(["--help"]).good();
    let page = fs::read_to_string(root().join("contrib/man/syncd-spawn.1")).unwrap().replace("\\-", "-");
    for text in [help.stdout(), &readme(), &page] {
        for word in ["lockpick", "syncd_spawn", "install", "--links"] {
            assert!(text.contains(word), "{word}");
        }
    }
}

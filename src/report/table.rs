//! A table for a person: columns as wide as their longest cell.

/// Lines of cells, the header first. A cell is one line, whatever is in it.
pub fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let rows: Vec<_> =
        std::iter::once(header.map(str::to_owned)).chain(rows).map(|row| row.map(|cell| one_line(&cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// What others wrote must not move the cursor.
fn one_line(cell: &str) -> String {
    let escaped = cell.chars().map(|character| match character.is_control() {
        true => character.escape_default().to_string(),
        false => character.to_string(),
    });
    escaped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_lines_end_with_the_last_one() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = vec![row(["held", "it's é", "/x"]), row(["waiting", "", ""]), row(["", "\u{1b}[2J\n", "/a longer one"])];
        assert_eq!(
            table(["STATE", "ID", "NODE"], rows),
            "STATE    ID           NODE\n\
             held     it's é       /x\n\
             waiting\n         \
             \\u{1b}[2J\\n  /a longer one\n"
        );
        assert_eq!(table(["A", "B"], vec![]), "A  B\n");
    }
}

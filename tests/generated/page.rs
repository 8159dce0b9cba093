//! A man page from a document of ours: as much of Markdown as those have.

use roff::{Inline, Roff, bold, roman};

/// Of the pages. It is set at a release.
pub(crate) const DATE: &str = "2026-11-28";

pub(crate) const SOURCE: &str = concat!("hotplugger ", env!("CARGO_PKG_VERSION"));

/// The page of section 5 with that name, and the document's text below its title.
pub(crate) fn page(name: &str, about: &str, document: &str) -> String {
    let mut roff = Roff::new();
    roff.control("TH", [name, "5", DATE, SOURCE]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - {about}"))]);
    roff.control("SH", ["DESCRIPTION"]);
    let lines: Vec<&str> = document.lines().skip_while(|line| !line.starts_with("# ")).collect();
    blocks(&mut roff, &lines[1..]);
    roff.control("SH", ["SEE ALSO"]);
    see_also(&mut roff, "hotplugger(1), hotplugger-check(1)");
    roff.to_roff()
}

/// The sections that the page of a command has beside those of the command line.
pub(crate) const SECTIONS: [&str; 5] =
    ["Examples", "Exit status", "Files", "Environment", "See also"];

/// The text of these sections, each from all of the chapters that have it. `examples` has those of the
/// help, if the help has some.
pub(crate) fn sections(document: &str, chapters: &[&str], examples: &str) -> String {
    let mut roff = Roff::new();
    for name in SECTIONS {
        let mut lines: Vec<&str> =
            examples.lines().filter(|_| name == "Examples").skip(1).collect();
        for chapter in chapters {
            lines.extend(section(document, chapter, name));
        }
        assert!(!lines.is_empty(), "{chapters:?}: no {name}");
        roff.control("SH", [name.to_uppercase().as_str()]);
        if name == "See also" {
            let lines = lines.iter().filter(|line| !line.is_empty());
            see_also(&mut roff, &lines.copied().collect::<Vec<_>>().join(", "));
        } else {
            blocks(&mut roff, &lines);
        }
    }
    roff.to_roff()
}

/// The lines of a section of a chapter.
fn section<'a>(document: &'a str, chapter: &str, name: &str) -> Vec<&'a str> {
    let chapter = format!("# {chapter}");
    let lines = document.lines().skip_while(|line| *line != chapter).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("# "));
    let lines = lines.skip_while(|line| line.strip_prefix("## ") != Some(name)).skip(1);
    lines.take_while(|line| !line.starts_with("## ")).collect()
}

/// Pages, their names in bold.
fn see_also(roff: &mut Roff, pages: &str) {
    let parts = pages.split_inclusive(", ").filter_map(|page| page.split_once('('));
    let inlines = parts.flat_map(|(page, rest)| [bold(page), roman(format!("({rest}"))]);
    roff.text(inlines.collect::<Vec<_>>());
}

/// The section of the document with that title.
pub(crate) fn whole_section(title: &str, document: &str) -> String {
    let (_, text) = document.split_once(&format!("\n## {title}\n")).unwrap();
    let lines: Vec<&str> = text.lines().take_while(|line| !line.starts_with("## ")).collect();
    let mut roff = Roff::new();
    roff.control("SH", [title.to_uppercase().as_str()]);
    blocks(&mut roff, &lines);
    roff.to_roff()
}

fn blocks(roff: &mut Roff, mut lines: &[&str]) {
    // A heading begins a paragraph.
    let mut after_heading = true;
    while let Some((first, rest)) = lines.split_first() {
        let length = block(lines);
        let (block, after) = lines.split_at(length);
        lines = after;
        let is_text = |line: &str| !line.starts_with(['#', '|', '*']) && !line.is_empty();
        if is_text(first) && !after_heading {
            roff.control("PP", []);
        }
        after_heading = first.starts_with('#') || first.is_empty() && after_heading;
        match *first {
            "" => lines = rest,
            line if line.starts_with("## ") => {
                roff.control("SH", [line[3..].to_uppercase().as_str()]);
            }
            line if line.starts_with('#') => {
                let title = line.trim_start_matches('#').trim().replace('`', "");
                roff.control("SS", [title.as_str()]);
            }
            line if line.starts_with("```") => code(roff, &block[1..block.len() - 1]),
            line if line.starts_with("    ") => code(roff, block),
            line if line.starts_with('|') => table(roff, block),
            line if line.starts_with("* ") => {
                roff.control("IP", ["\\(bu", "2"]);
                roff.text(inline(&joined(block)[2..]));
            }
            _ => {
                roff.text(inline(&joined(block)));
            }
        }
    }
}

/// How many lines the block has that begins here.
fn block(lines: &[&str]) -> usize {
    let first = lines[0];
    let same = |is: fn(&&&str) -> bool| 1 + lines[1..].iter().take_while(is).count();
    match first {
        "" => 1,
        line if line.starts_with('#') => 1,
        line if line.starts_with("```") => same(|line| !line.starts_with("```")) + 1,
        line if line.starts_with("    ") => same(|line| line.starts_with("    ")),
        line if line.starts_with('|') => same(|line| line.starts_with('|')),
        line if line.starts_with("* ") => same(|line| line.starts_with("  ")),
        _ => same(|line| !line.is_empty() && !line.starts_with(['#', '|', '*'])),
    }
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn code(roff: &mut Roff, lines: &[&str]) {
    let indent = |line: &&&str| line.len() - line.trim_start().len();
    let least = lines.iter().filter(|line| !line.is_empty()).map(|line| indent(&line)).min();
    roff.control("RS", ["4"]).control("nf", []);
    for line in lines {
        roff.text([roman(line.get(least.unwrap_or(0)..).unwrap_or_default())]);
    }
    roff.control("fi", []).control("RE", []);
}

/// The first cell of each row, and below it the others with what their columns are called.
fn table(roff: &mut Roff, lines: &[&str]) {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let names = cells(lines[0]);
    for row in &lines[2..] {
        let row = cells(row);
        roff.control("TP", []);
        roff.text(inline(&row[0]));
        let rest = row.iter().zip(&names).skip(1).filter(|(cell, _)| !cell.is_empty());
        let rest: Vec<String> = rest
            .map(
                |(cell, name)| {
                    if name.is_empty() { cell.clone() } else { format!("{name}: {cell}") }
                },
            )
            .collect();
        roff.text(inline(&rest.join("; ")));
    }
}

/// What is between backticks is bold; of links their text stays.
fn inline(text: &str) -> Vec<Inline> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        plain.push_str(before);
        match link.split_once("](") {
            Some((words, target)) if !words.contains('[') => {
                plain.push_str(words);
                rest = target.split_once(')').map_or("", |(_, after)| after);
            }
            _ => {
                plain.push('[');
                rest = link;
            }
        }
    }
    plain.push_str(rest);
    let parts = plain.split('`').enumerate();
    parts.map(|(at, part)| if at % 2 == 0 { roman(part) } else { bold(part) }).collect()
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn each_kind_of_block_is_set() {
        let page = page(
            "x.yaml",
            "a file",
            "# X\n\nA `word` and a\n[link](other.md).\n\n## Keys\n\n| key | | default |\n| --- | --- | --- |\n\
             | `delay` | seconds | 1 |\n\n```yaml\n    a: 1\n```\n\n* one\n  more\n* .two\n\n    run it\n",
        );
        for piece in [
            ".TH x.yaml 5 ",
            "A \\fBword\\fR and a link.\n",
            ".SH KEYS\n.TP\n\\fBdelay\\fR\nseconds; default: 1\n",
            ".nf\na: 1\n.fi\n",
            ".IP \\(bu 2\none more\n",
            ".nf\nrun it\n.fi\n",
        ] {
            assert!(page.contains(piece), "{piece}\n{page}");
        }
        assert!(!page.contains("\n.two"), "{page}");
    }
}

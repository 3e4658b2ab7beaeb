//! The report as a person reads it in a terminal.

use std::fmt::{self, Write as _};

use super::{Aim, Bound, Report, Row, StartUp, Subject, Throughput};
use crate::statistics::Summary;

/// The whole report, ending with a line break.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &Report) -> fmt::Result {
    let Report { balm, onnxruntime, machine, lanes, rounds, seconds, .. } = report;
    writeln!(text, "{balm} beside ONNX Runtime alone ({onnxruntime})")?;
    writeln!(
        text,
        "{}, {} cores, load {:.1} before",
        machine.processor, machine.cores, machine.load
    )?;
    writeln!(
        text,
        "{lanes} sessions of one thread on either side; {rounds} rounds of {seconds} s; medians, ± half the range\n\
         ÷: answers per second beside another's (best: ORT alone with as many rows in a run as serve it best); \
         −: p50 less another's, µs"
    )?;
    for throughput in &report.throughput {
        write_throughput(text, throughput)?;
    }
    if !report.start_up.is_empty() {
        writeln!(text, "\nexec to the first right answer, and memory (Pss) idle after it")?;
        for start_up in &report.start_up {
            write_start_up(text, start_up)?;
        }
    }
    if !report.aims.is_empty() {
        writeln!(text, "\naims")?;
        for aim in &report.aims {
            write_aim(text, aim)?;
        }
    }
    if let Some(others) = report.disturbed() {
        writeln!(
            text,
            "\nOther work took up to {others:.2} of a core: good for a look, not for a document."
        )?;
    }
    Ok(())
}

fn write_throughput(text: &mut String, throughput: &Throughput) -> fmt::Result {
    writeln!(text, "\n{}, case {}", throughput.model, throughput.case)?;
    writeln!(
        text,
        "  {:<10} {:>7} {:>12} {:>5} {:>9} {:>9} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7}   cores: load, server, else",
        "",
        "at once",
        "answers/s",
        "±",
        "p50 µs",
        "p99 µs",
        "rows/run",
        "÷ ORT",
        "÷ best",
        "÷ no-op",
        "− ORT",
        "− no-op"
    )?;
    for row in &throughput.rows {
        write_row(text, row)?;
    }
    Ok(())
}

fn write_row(text: &mut String, row: &Row) -> fmt::Result {
    let subject = match row.subject {
        Subject::OrtAlone => "ORT alone",
        Subject::OrtBatched => "ORT rows",
        Subject::Balm => "balm",
        Subject::Noop => "no-op",
    };
    let ratio = |found: Option<Summary>| {
        found.map_or_else(String::new, |found| format!("{:.2}", found.median))
    };
    let added =
        |found: Option<Summary>| found.map_or_else(String::new, |found| short(found.median));
    let cores = row.cores.map_or_else(String::new, |cores| {
        format!("{:.2}, {:.2}, {:.2}", cores.generator, cores.target, cores.others)
    });
    let line = format!(
        "  {:<10} {:>7} {:>12} {:>5} {:>9} {:>9} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7}   {cores}",
        subject,
        row.at_once,
        short(row.per_second.median),
        percent(row.per_second.spread),
        short(row.p50_us.median),
        short(row.p99_us.median),
        added(row.rows_per_run),
        ratio(row.to_ort_alone),
        ratio(row.to_best_batch),
        ratio(row.to_noop),
        added(row.added_p50_us),
        added(row.added_to_noop_us),
    );
    writeln!(text, "{}", line.trim_end())
}

fn write_start_up(text: &mut String, found: &StartUp) -> fmt::Result {
    writeln!(
        text,
        "  {}: ORT alone {:.0} ms ±{} (library {:.0}, hash {:.0}, session {:.0}, first run {:.1}), balm {:.0} ms ±{}",
        found.model,
        found.ort_alone_ms.median,
        percent(found.ort_alone_ms.spread),
        found.library_ms,
        found.hash_ms,
        found.session_ms,
        found.first_run_ms,
        found.balm_ms.median,
        percent(found.balm_ms.spread),
    )?;
    writeln!(
        text,
        "  {}: ORT alone {:.1} MB with {} sessions, balm {:.1} MB: {:+.1} MB",
        found.model,
        found.ort_alone_pss_mb.median,
        found.sessions,
        found.balm_pss_mb.median,
        found.added_pss_mb.median,
    )
}

fn write_aim(text: &mut String, aim: &Aim) -> fmt::Result {
    let (sign, bound) = match aim.bound {
        Bound::AtLeast(bound) => ('≥', bound),
        Bound::AtMost(bound) => ('≤', bound),
    };
    let verdict = if aim.met { "met" } else { "NOT MET" };
    let Summary { median, spread } = aim.found;
    let spread = format!("±{}", percent(spread));
    let line =
        format!("{:<52} {median:>7.2} {spread:>5}   aim {sign} {bound:<5} {verdict}", aim.what);
    writeln!(text, "  {line}")
}

/// Three digits or so.
fn short(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_disturbed_report_says_so() {
        let mut report = report("iris");
        report.throughput[0].rows[2].cores =
            Some(crate::process::Cores { generator: 0.5, target: 1.0, others: 0.25 });
        let rendered = render(&report);
        assert!(rendered.ends_with(
            "\nOther work took up to 0.25 of a core: good for a look, not for a document.\n"
        ));
    }

    #[test]
    fn a_report_can_be_read() {
        let expected = "\
balm 0.1.0 beside ONNX Runtime alone (libonnxruntime.so.1.31.1)
A Fast One, 2 cores, load 0.5 before
2 sessions of one thread on either side; 3 rounds of 4 s; medians, ± half the range
÷: answers per second beside another's (best: ORT alone with as many rows in a run as serve it best); −: p50 less another's, µs

iris, case one_row
             at once    answers/s     ±    p50 µs    p99 µs rows/run   ÷ ORT  ÷ best ÷ no-op   − ORT − no-op   cores: load, server, else
  ORT alone        1          900   25%      10.0      20.0      2.0
  ORT alone        2         1000   25%      20.0      40.0      2.0
  ORT rows         4         1840   25%      80.0       160      2.0
  balm             1          500   25%      70.0       140      2.0    0.50    0.27    0.62    60.0    30.0   0.50, 1.25, 0.00
  balm            64          920   25%       900      1800      2.0    0.92    0.50    0.46                   0.50, 1.25, 0.00
  no-op            1          800   25%      40.0      80.0      2.0                                           0.50, 1.25, 0.00
  no-op           64         2000   25%       500      1000      2.0                                           0.50, 1.25, 0.00

exec to the first right answer, and memory (Pss) idle after it
  iris: ORT alone 100 ms ±0% (library 25, hash 5, session 60, first run 8.0), balm 130 ms ±0%
  iris: ORT alone 50.0 MB with 2 sessions, balm 62.0 MB: +12.0 MB

aims
  iris: balm ÷ no-op route, 64 connections                0.46   ±0%   aim ≥ 0.4   met
  iris: p50 above ORT alone, 1 connection, µs            60.00   ±0%   aim ≤ 100   met
  iris: exec to right answer ÷ (ORT alone + hash)         1.30   ±0%   aim ≤ 1.2   NOT MET
  iris: idle memory above ORT alone, MB                  12.00   ±0%   aim ≤ 15    met
";
        assert_eq!(render(&report("iris")), expected);
    }
}

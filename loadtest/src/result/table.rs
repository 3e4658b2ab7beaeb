//! The result as a person reads it in a terminal.

use std::fmt::{self, Write as _};

use super::{Counts, Latencies, Phase, Probes, RunResult};
use crate::figures::{Judged, Limit};

/// The whole result, ending with a line break.
pub(crate) fn render(result: &RunResult) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, result);
    text
}

fn write(text: &mut String, result: &RunResult) -> fmt::Result {
    let target = &result.target;
    let server = target.server.as_deref().unwrap_or("a server that does not say its name");
    writeln!(text, "{}: {}", result.scenario.name, result.scenario.description)?;
    writeln!(
        text,
        "{server} at {}, model {}, {} {}, {} bytes a request",
        target.address, target.model, target.protocol, target.encoding, target.request_bytes
    )?;
    let machine = &result.machine;
    writeln!(
        text,
        "{}, {} cores, load {:.1} before; {}",
        machine.processor, machine.cores, machine.load, result.begun
    )?;
    if let Some(capacity) = &result.capacity {
        writeln!(text, "{}", capacity_line(capacity))?;
    }
    writeln!(
        text,
        "\n{:<24} {:>8} {:>8} {:>8} {:>6} {:>7}  {:>21}  {:>19}  answers",
        "phase",
        "offered",
        "sent",
        "good/s",
        "÷ C",
        "success",
        "accepted p50 p99 p999",
        "rejected p50 p99"
    )?;
    for phase in &result.phases {
        write_counts(text, result, phase, &phase.name, "", &phase.total)?;
        for (client, counts) in phase.clients.iter().filter(|_| phase.clients.len() > 1) {
            write_counts(text, result, phase, &format!("  {client}"), client, counts)?;
        }
    }
    for phase in &result.phases {
        if let Some(recovery) = &phase.recovery {
            let when = match recovery.seconds {
                Some(seconds) => format!("after {seconds:.1} s"),
                None => "never".to_owned(),
            };
            writeln!(
                text,
                "{}: {when} within {} × the p99 of {} ({} ms)",
                phase.name,
                recovery.factor,
                recovery.baseline,
                recovery.limit_ms.map_or_else(|| "–".to_owned(), short)
            )?;
        }
    }
    if let Some(probes) = &result.probes {
        write_probes(text, probes)?;
    }
    write_generator(text, result)?;
    if !result.expectations.is_empty() {
        writeln!(text, "\nexpectations")?;
        for judged in &result.expectations {
            writeln!(text, "  {}", expectation(judged))?;
        }
    }
    for note in &result.notes {
        writeln!(text, "\nnote: {note}")?;
    }
    for reason in &result.generator_limited {
        writeln!(text, "\nbottleneck: {reason}")?;
    }
    if let Some(reason) = &result.partial {
        writeln!(text, "\npartial: {reason}")?;
    }
    writeln!(text, "\n{}", result.verdict.words())
}

pub(super) fn capacity_line(capacity: &super::Capacity) -> String {
    let mut line = format!("capacity C = {:.1}/s", capacity.per_s);
    match (capacity.given, capacity.connections, capacity.latency) {
        (false, Some(connections), Some(ms)) => {
            let (p50, p99) = (short(ms.p50), short(ms.p99));
            line += &format!(
                ", {connections} connections in a closed loop, p50 {p50} ms, p99 {p99} ms"
            );
        }
        _ => line += ", as given",
    }
    if let Some(again) = capacity.again_per_s {
        line += &format!("; after the phases {again:.1}/s");
    }
    line
}

fn write_counts(
    text: &mut String,
    result: &RunResult,
    phase: &Phase,
    name: &str,
    client: &str,
    counts: &Counts,
) -> fmt::Result {
    let good = counts.good_within as f64 / phase.seconds;
    let prefix =
        if client.is_empty() { phase.name.clone() } else { format!("{}.{client}", phase.name) };
    let figure = |name: &str| result.figures.get(&format!("{prefix}.{name}")).copied();
    let line = format!(
        "{name:<24} {:>8} {:>8} {:>8} {:>6} {:>7}  {:>21}  {:>19}  {}",
        counts.offered,
        counts.sent,
        short(good),
        figure("goodput_ratio").map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        figure("success_ratio").map_or_else(String::new, |ratio| format!("{:.1}%", ratio * 100.0)),
        latencies(counts.accepted_latency, true),
        latencies(counts.rejected_latency, false),
        ends(counts),
    );
    writeln!(text, "{}", line.trim_end())
}

fn latencies(latency: Option<Latencies>, three: bool) -> String {
    let Some(ms) = latency else { return String::new() };
    let two = format!("{:>6} {:>6}", short(ms.p50), short(ms.p99));
    if three { format!("{two} {:>7}", short(ms.p999)) } else { two }
}

/// How attempts ended, in one line: statuses, errors and the like.
pub(super) fn ends(counts: &Counts) -> String {
    let statuses = counts.statuses.iter().map(|(status, count)| format!("{status}: {count}"));
    let errors = counts.errors.iter().map(|(kind, count)| format!("{kind}: {count}"));
    let others = [
        ("late", counts.late),
        ("wrong", counts.wrong),
        ("abandoned", counts.abandoned),
        ("not sent", counts.not_sent),
        ("still out", counts.unanswered),
    ];
    let others = others.into_iter().filter(|(_, count)| *count > 0);
    let others = others.map(|(what, count)| format!("{what}: {count}"));
    statuses.chain(errors).chain(others).collect::<Vec<_>>().join(", ")
}

fn write_probes(text: &mut String, probes: &Probes) -> fmt::Result {
    writeln!(
        text,
        "\nprobes at {}: {} restarts, {} times no longer ready, {} at the end",
        probes.address,
        probes.restarts,
        probes.ready_false,
        if probes.ready { "ready" } else { "NOT ready" }
    )?;
    for probe in &probes.probes {
        let ms = probe.latency.map_or_else(String::new, |ms| {
            format!(
                "p50 {} ms, p99 {} ms, p999 {} ms, max {} ms",
                short(ms.p50),
                short(ms.p99),
                short(ms.p999),
                short(ms.max)
            )
        });
        let (path, polls, failures) = (&probe.path, probe.polls, probe.failures);
        writeln!(text, "  {path:<10} {polls} polls, {failures} failures, {ms}")?;
        if let Some(last) = probe.failed.last() {
            writeln!(text, "             the last at {:.1} s: {}", last.at_s, last.why)?;
        }
    }
    Ok(())
}

fn write_generator(text: &mut String, result: &RunResult) -> fmt::Result {
    let generator = &result.generator;
    let or_dash = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
    writeln!(
        text,
        "\ngenerator: sent {} ms late at p99, {} ms at most; {} of its one core; {} µs of processor a request",
        or_dash(generator.lag_p99_ms),
        or_dash(generator.lag_max_ms),
        generator.cores_max.map_or_else(|| "–".to_owned(), |cores| format!("{cores:.2}")),
        or_dash(generator.cpu_us_per_request),
    )?;
    if let Some(ceiling) = &generator.ceiling {
        writeln!(
            text,
            "           ceiling {:.0}/s at {:.1} µs a request, against {}",
            ceiling.per_s, ceiling.cpu_us_per_request, ceiling.against
        )?;
    }
    Ok(())
}

fn expectation(judged: &Judged) -> String {
    let mark = if judged.passed { "pass" } else { "FAIL" };
    let found = judged.found.map_or_else(|| "not measured".to_owned(), short);
    format!("{mark}  {:<40} {found:>12}  {}", judged.figure, bound(judged))
}

/// `≤ base.p99 * 1.2 = 12.0`
pub(super) fn bound(judged: &Judged) -> String {
    let sign = match judged.limit {
        Limit::AtMost => '≤',
        Limit::AtLeast => '≥',
        Limit::Equals => '=',
    };
    let is_number = judged.bound.parse::<f64>().is_ok();
    let value = match judged.bound_value {
        Some(_) if is_number => String::new(),
        Some(value) => format!(" = {}", short(value)),
        None => " = not measured".to_owned(),
    };
    format!("{sign} {}{value}", judged.bound)
}

/// Three digits or so.
pub(super) fn short(value: f64) -> String {
    let size = value.abs();
    if value == value.trunc() && size < 1e6 || size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 0.01 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;

    #[test]
    fn everything_that_matters_is_told() {
        let text = render(&result());
        for piece in [
            "sample: One < two",
            "balm 0.1.0 at 127.0.0.1:8000, model iris, http1 binary, 200 bytes a request",
            "capacity C = 100.0/s, 4 connections in a closed loop, p50 10 ms, p99 25 ms; after the phases 98.0/s",
            "200: 100, 503: 900",
            "after: after 2.5 s within 1.2 × the p99 of base (30 ms)",
            "probes at 127.0.0.1:8002: 0 restarts, 1 times no longer ready, ready at the end",
            "the last at 12.0 s: status 503",
            "generator: sent 0.25 ms late at p99",
            "ceiling 20000/s at 15.0 µs a request, against the target's /noop",
            "pass  after.accepted_p99_ms                              25  ≤ base.accepted_p99_ms * 1.2 = 30",
            "FAIL  after.recovery_s                         not measured",
            "note: a note",
            "\nFAILED\n",
        ] {
            assert!(text.contains(piece), "{piece}\n{text}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.00125, "0.0013"),
            (0.128, "0.13"),
            (1.5, "1.50"),
            (25.0, "25"),
            (33.33, "33.3"),
            (1234.5, "1234"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}

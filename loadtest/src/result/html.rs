//! The result as one page of HTML that needs nothing else: no network, no scripts.

mod tables;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot::{Plot, Series, Span};
use super::{Bucket, Probes, RunResult, Verdict, table};
use crate::kubelet::{Event, Kind};
use crate::page::STYLE;

/// The whole page.
pub(crate) fn render(result: &RunResult) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (result.scenario.name) " – " (short_verdict(result.verdict)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                (header(result))
                (tables::expectations(&result.expectations))
                (notes(result))
                section {
                    h2 { "Over time" }
                    (plots(result))
                }
                (tables::phases(result))
                (tables::probes(result.probes.as_ref()))
                (tables::generator(result))
                footer {
                    "Latency counts from the moment a request was meant to be sent. Times are milliseconds unless a unit says otherwise. "
                    "balm-loadtest " (result.generator.version) ", result schema " (result.schema) "."
                }
            }
        }
    };
    page.into_string()
}

fn short_verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::Measured => "measured",
        Verdict::Partial => "partial",
        Verdict::GeneratorLimited => "proves nothing",
    }
}

fn header(result: &RunResult) -> Markup {
    let class = match result.verdict {
        Verdict::Passed => "badge pass",
        Verdict::Measured => "badge",
        Verdict::Failed | Verdict::Partial | Verdict::GeneratorLimited => "badge fail",
    };
    let target = &result.target;
    let machine = &result.machine;
    let scale = result.scenario.time_scale;
    html! {
        header {
            h1 { (result.scenario.name) " " span class=(class) { (short_verdict(result.verdict)) } }
            p.lead { (result.scenario.description) }
            dl.facts {
                dt { "Server" }
                dd { (target.server.as_deref().unwrap_or("does not say its name")) " at " (target.address) }
                dt { "Asked" }
                dd {
                    (target.model)
                    @if let Some(version) = &target.version { " version " (version) }
                    ", " (target.protocol) ", " (target.encoding) ", " (target.request_bytes) " bytes a request"
                }
                @if let Some(capacity) = &result.capacity {
                    dt { "Capacity" }
                    dd { (table::capacity_line(capacity).replacen("capacity C = ", "C = ", 1)) }
                }
                dt { "Machine" }
                dd { (machine.processor) ", " (machine.cores) " cores, load " (format!("{:.1}", machine.load)) " before" }
                dt { "Run" }
                dd {
                    (result.begun) ", " (format!("{:.0}", result.seconds)) " s, seed " (result.scenario.seed)
                    @if (scale - 1.0).abs() > f64::EPSILON { ", time scale " (scale) }
                }
            }
        }
    }
}

fn notes(result: &RunResult) -> Markup {
    html! {
        @if let Some(reason) = &result.partial {
            p.note.fail { strong { "It ended early: " } (reason) }
        }
        @for reason in &result.generator_limited {
            p.note.fail { strong { "The generator was the bottleneck: " } (reason) }
        }
        @for note in &result.notes { p.note { (note) } }
    }
}

fn plots(result: &RunResult) -> Markup {
    let seconds = result.seconds.max(f64::MIN_POSITIVE);
    let phases: Vec<Span> = result
        .phases
        .iter()
        .map(|phase| Span {
            label: phase.name.clone(),
            class: "phase",
            from: phase.start_s,
            to: phase.start_s + phase.seconds,
        })
        .collect();
    let stalls: Vec<f64> = result.generator.stalls.iter().map(|stall| stall.at_s).collect();
    let capacity = result.capacity.as_ref().map(|capacity| capacity.per_s);
    let plot = |title, unit, height, logarithmic, series| Plot {
        title,
        unit,
        height,
        seconds,
        logarithmic,
        phases: &phases,
        series,
        reference: None,
        band: Vec::new(),
        stalls: &stalls,
    };
    let rates = |label, class, count: fn(&Bucket) -> u64| rate(result, label, class, count);
    let all = vec![
        Series { area: false, ..rates("offered", "offered", |bucket| bucket.offered) },
        rates("good", "good", |bucket| bucket.ok),
        rates("503", "shed503", |bucket| bucket.status_503),
        rates("429", "shed429", |bucket| bucket.status_429),
        rates("504", "shed504", |bucket| bucket.status_504),
        rates("other statuses", "other", |bucket| bucket.other),
        rates("no answer", "error", |bucket| bucket.errors),
        rates("abandoned", "abandoned", |bucket| bucket.abandoned),
        rates("not sent", "notsent", |bucket| bucket.not_sent),
    ];
    let all = all.into_iter().filter(|series| series.points.iter().any(|(_, v)| *v > Some(0.0)));
    let good = Series { area: true, ..rates("good", "good", |bucket| bucket.ok) };
    let latencies = vec![
        latency(result, "accepted p50", "p50", |bucket| Some(bucket.accepted?.p50)),
        latency(result, "accepted p99", "p99", |bucket| Some(bucket.accepted?.p99)),
        latency(result, "rejected p99", "rejected", |bucket| Some(bucket.rejected?.p99)),
    ];
    html! {
        (plot("Requests and answers", "per second", 260.0, false, all.collect()).render())
        (Plot {
            reference: capacity.map(|rate| (rate, format!("C = {rate:.1}"))),
            ..plot("2xx answers beside capacity", "per second", 180.0, false, vec![good])
        }.render())
        (plot("Latency", "ms, logarithmic", 260.0, true, latencies).render())
        @if let Some(probes) = &result.probes {
            (Plot {
                band: readiness(probes, seconds),
                ..plot("Probes", "ms, logarithmic; the band below is readiness", 200.0, true, polls(probes, seconds))
            }.render())
        }
    }
}

/// Buckets that begin within the phases; the rest is waiting for the last answers.
fn buckets(result: &RunResult) -> impl Iterator<Item = (f64, &Bucket)> {
    let width = result.timeline.bucket_s;
    let all = result.timeline.buckets.iter().enumerate();
    let all = all.map(move |(index, bucket)| ((index as f64 + 0.5) * width, bucket));
    all.take_while(|(middle, _)| *middle < result.seconds)
}

fn rate<'a>(
    result: &RunResult,
    label: &'a str,
    class: &'static str,
    count: fn(&Bucket) -> u64,
) -> Series<'a> {
    let width = result.timeline.bucket_s.max(f64::MIN_POSITIVE);
    let points = buckets(result).map(|(at, bucket)| (at, Some(count(bucket) as f64 / width)));
    Series { label, class, points: points.collect(), area: false, dots: false }
}

fn latency<'a>(
    result: &RunResult,
    label: &'a str,
    class: &'static str,
    value: fn(&Bucket) -> Option<f64>,
) -> Series<'a> {
    let points = buckets(result).map(|(at, bucket)| (at, value(bucket)));
    Series { label, class, points: points.collect(), area: false, dots: false }
}

fn polls(probes: &Probes, seconds: f64) -> Vec<Series<'_>> {
    let class = |kind| match kind {
        Kind::Live => "live",
        Kind::Ready => "ready",
        Kind::Startup => "startup",
    };
    let series = |probe: &super::Probe| Series {
        label: probe.kind.name(),
        class: class(probe.kind),
        points: probe
            .points
            .iter()
            .filter(|(at, _)| (0.0..=seconds).contains(at))
            .map(|(at, ms)| (*at, Some(*ms)))
            .collect(),
        area: false,
        dots: true,
    };
    probes.probes.iter().map(series).collect()
}

/// From when to when a Service would have sent traffic.
fn readiness(probes: &Probes, seconds: f64) -> Vec<Span> {
    if !probes.probes.iter().any(|probe| probe.kind == Kind::Ready) {
        return Vec::new();
    }
    let mut spans: Vec<Span> = Vec::new();
    let mut ready = false;
    let mut from = 0.0;
    let mut close = |ready: bool, from: f64, to: f64| {
        if to > from {
            let (class, label) = if ready { ("up", "ready") } else { ("down", "not ready") };
            spans.push(Span { label: format!("{label} {from:.1} to {to:.1} s"), class, from, to });
        }
    };
    for event in probes.events.iter().filter(|event| event.probe == Kind::Ready) {
        let at = event.at_s.clamp(0.0, seconds);
        close(ready, from, at);
        ready = event.event == Event::BecameReady;
        from = at;
    }
    close(ready, from, seconds);
    spans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;

    #[test]
    fn the_page_needs_nothing_else_and_escapes_what_it_is_given() {
        let page = render(&result());
        assert!(page.starts_with("<!DOCTYPE html>"));
        for foreign in ["http://", "https://", "<script", "url(", "@import"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("One &lt; two &amp; &quot;three&quot;."));
        for piece in [
            "badge fail",
            "C = 100.0",
            "prefers-color-scheme",
            "@media print",
            "not measured",
            "a note",
        ] {
            assert!(page.contains(piece), "{piece}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
    }

    #[test]
    fn readiness_is_a_band() {
        let probes = result().probes.unwrap();
        // The made-up run polls no readiness.
        assert!(readiness(&probes, 20.0).is_empty());
        let mut probes = probes;
        probes.probes[0].kind = Kind::Ready;
        let spans: Vec<_> = readiness(&probes, 20.0)
            .into_iter()
            .map(|span| (span.class, span.from, span.to))
            .collect();
        assert_eq!(spans, [("up", 0.0, 12.0), ("down", 12.0, 14.0), ("up", 14.0, 20.0)]);
    }

    #[test]
    fn a_run_that_saw_nothing_has_a_page() {
        let mut result = result();
        result.timeline.buckets.clear();
        result.probes = None;
        result.capacity = None;
        result.expectations.clear();
        result.phases.clear();
        assert!(render(&result).contains("</html>"));
    }
}

//! The report as one page of HTML that needs nothing else: no network, no scripts. It looks as the load generator's pages do.

use super::{Bucket, CardReport, Report, Status};
use balm_loadtest::page::{Plot, STYLE, Series, Span};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// What this page has beside the common style.
const OWN_STYLE: &str = include_str!("html/drill.css");

/// The whole page.
pub(in crate::drill) fn render(report: &Report) -> String {
    let verdict = if report.passed { "passed" } else { "failed" };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "balm drill – " (verdict) }
                style { (PreEscaped(STYLE)) (PreEscaped(OWN_STYLE)) }
            }
            body {
                (header(report))
                (summary(report))
                @for card in &report.cards { (card_section(card)) }
                footer {
                    "Seconds count from the fault. A kubelet looked each second throughout, stricter than the manifest's. "
                    "balm " (report.balm) ", report schema " (report.schema) "."
                }
            }
        }
    };
    page.into_string()
}

fn badge(status: Status) -> Markup {
    let (class, word) = match status {
        Status::Passed => ("badge pass", "passed"),
        Status::Failed => ("badge fail", "failed"),
        Status::Skipped => ("badge", "not played"),
    };
    html! { span class=(class) { (word) } }
}

fn header(report: &Report) -> Markup {
    let status = if report.passed { Status::Passed } else { Status::Failed };
    html! {
        header {
            h1 { "balm drill " (badge(status)) }
            p.lead { (report.headline()) "." }
            dl.facts {
                dt { "Models" }
                dd {
                    @for (index, model) in report.models.iter().enumerate() {
                        @if index > 0 { ", " }
                        (model.name) " version " (model.version)
                        @if !model.recorded { " (asked zeros)" }
                        " " span.unit { "p50 " (format!("{:.2}", model.baseline.p50_ms)) " ms" }
                    }
                }
                dt { "Faults for" }
                dd { (report.models.first().map_or("", |model| model.name.as_str())) ", in a private copy of " code { (report.repository) } }
                dt { "Machine" }
                dd { (report.machine.processor) ", " (report.machine.cores) " cores, load " (format!("{:.1}", report.machine.load)) " before" }
                dt { "Run" }
                dd { (report.begun) ", " (format!("{:.0}", report.seconds)) " s, seed " (report.seed) }
            }
        }
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1} s"))
}

fn summary(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Report card" }
            table {
                thead {
                    tr {
                        th { "card" } th {}
                        th.number { "noticed after" } th.number { "well after" }
                        th.number { "answered" } th.number { "turned away" } th.number { "lost" } th.number { "wrong" }
                        th.number { "workers replaced" } th.number { "kubelet restarts" }
                    }
                }
                tbody {
                    @for card in &report.cards {
                        tr {
                            td { a href={ "#" (card.name.as_str()) } { (card.title) } }
                            td { (badge(card.status)) }
                            @if let Some(outcome) = &card.outcome {
                                td.number { (seconds(outcome.detected_s)) }
                                td.number { (seconds(outcome.healed_s)) }
                                td.number { (outcome.requests.right) }
                                td.number { (outcome.requests.refused.values().sum::<u64>()) }
                                td.number { (outcome.requests.lost) }
                                td.number { (outcome.requests.wrong) }
                                td.number { (outcome.workers_replaced) }
                                td.number { (outcome.kubelet_restarts) }
                            } @else {
                                td colspan="8" { (card.sentence) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn card_section(card: &CardReport) -> Markup {
    html! {
        section.card id=(card.name.as_str()) {
            h2 { (card.title) " " (badge(card.status)) }
            p.about { (card.about) }
            @if let Some(outcome) = &card.outcome {
                p.story { (card.sentence) }
                @if let Some(advice) = card.advice {
                    p.note.fail { strong { (advice.meaning) } " " (advice.remedy) }
                }
                (plot(card))
                table.checks {
                    thead { tr { th {} th { "what" } th { "found" } th { "expected" } } }
                    tbody {
                        @for check in &outcome.checks {
                            tr {
                                td { @if check.passed { span.badge.pass { "pass" } } @else { span.badge.fail { "fail" } } }
                                td { (check.what) }
                                td { (check.found) }
                                td { (check.expected) }
                            }
                        }
                    }
                }
            } @else {
                p.note.fail[card.status == Status::Failed] { (card.sentence) }
            }
        }
    }
}

/// Answers over time. The plot begins a second before the fault; its axis counts from there.
fn plot(card: &CardReport) -> Markup {
    let timeline = &card.timeline;
    let width = timeline.bucket_s.max(f64::MIN_POSITIVE);
    let whole = timeline.buckets.len() as f64 * width;
    let rate = |label, class, area, count: fn(&Bucket) -> u64| {
        let point = |(index, bucket): (usize, &Bucket)| {
            ((index as f64 + 0.5) * width, Some(count(bucket) as f64 / width))
        };
        let points = timeline.buckets.iter().enumerate().map(point).collect();
        Series { label, class, points, area, dots: false }
    };
    let all = vec![
        rate("right", "good", true, |bucket| bucket.right),
        rate("turned away or failed", "shed503", false, |bucket| bucket.refused),
        rate("lost", "error", false, |bucket| bucket.lost),
        rate("wrong", "abandoned", false, |bucket| bucket.wrong),
    ];
    let series = all.into_iter().filter(|series| series.points.iter().any(|(_, v)| *v > Some(0.0)));
    let fault = -timeline.from_s;
    let outcome = card.outcome.as_ref();
    let well = outcome
        .and_then(|outcome| outcome.healed_s)
        .map(|healed| fault + outcome.map_or(0.0, |outcome| outcome.lasted_s) + healed);
    let span = |label: &str, from: f64, to: f64| Span {
        label: label.to_owned(),
        class: "phase",
        from,
        to: to.min(whole),
    };
    let mut phases = vec![span("before", 0.0, fault)];
    match well {
        Some(well) if well > fault + width => {
            phases.push(span("the fault", fault, well));
            phases.push(span("well again", well, whole));
        }
        Some(_) => phases.push(span("the fault", fault, whole)),
        None => phases.push(span("the fault", fault, whole)),
    }
    Plot {
        title: "Answers",
        unit: &format!("per second; the fault at {fault:.0} s"),
        height: 150.0,
        seconds: whole.max(width),
        logarithmic: false,
        phases: &phases,
        series: series.collect(),
        reference: None,
        band: Vec::new(),
        stalls: &[],
    }
    .render()
}

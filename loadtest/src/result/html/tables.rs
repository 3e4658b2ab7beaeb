//! The tables of the page.

use maud::{Markup, html};

use crate::figures::Judged;
use crate::result::table::{bound, ends, short};
use crate::result::{Counts, Latencies, Phase, Probes, RunResult};

pub(super) fn expectations(expectations: &[Judged]) -> Markup {
    html! {
        @if !expectations.is_empty() {
            section {
                h2 { "Expectations" }
                table {
                    thead { tr { th {} th { "figure" } th.number { "found" } th { "expected" } } }
                    tbody {
                        @for judged in expectations {
                            tr {
                                td { @if judged.passed { span.badge.pass { "pass" } } @else { span.badge.fail { "fail" } } }
                                td { code { (judged.figure) } }
                                td.number { (judged.found.map_or_else(|| "not measured".to_owned(), short)) }
                                td { (bound(judged)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn phases(result: &RunResult) -> Markup {
    html! {
        section {
            h2 { "Phases" }
            table {
                thead {
                    tr {
                        th rowspan="2" { "phase" }
                        th.number rowspan="2" { "offered" }
                        th.number rowspan="2" { "sent" }
                        th.number rowspan="2" { "good/s" }
                        th.number rowspan="2" { "÷ C" }
                        th.number rowspan="2" { "success" }
                        th.group colspan="3" { "accepted, ms" }
                        th.group colspan="2" { "rejected, ms" }
                        th rowspan="2" { "how attempts ended" }
                    }
                    tr {
                        th.number { "p50" } th.number { "p99" } th.number { "p999" }
                        th.number { "p50" } th.number { "p99" }
                    }
                }
                tbody {
                    @for phase in &result.phases {
                        (row(result, phase, None, &phase.total))
                        @for (client, counts) in phase.clients.iter().filter(|_| phase.clients.len() > 1) {
                            (row(result, phase, Some(client), counts))
                        }
                    }
                }
            }
            @for phase in &result.phases {
                @if let Some(recovery) = &phase.recovery {
                    p {
                        strong { (phase.name) }
                        @match recovery.seconds {
                            Some(seconds) => { " was as good as " (recovery.baseline) " after " (format!("{seconds:.1}")) " s" }
                            None => { " was never as good as " (recovery.baseline) " again" }
                        }
                        @if let Some(limit) = recovery.limit_ms {
                            " (accepted p99 within " (recovery.factor) " ×, " (short(limit)) " ms)."
                        }
                    }
                }
            }
        }
    }
}

fn row(result: &RunResult, phase: &Phase, client: Option<&str>, counts: &Counts) -> Markup {
    let prefix =
        client.map_or_else(|| phase.name.clone(), |client| format!("{}.{client}", phase.name));
    let figure = |name: &str| result.figures.get(&format!("{prefix}.{name}")).copied();
    let good = counts.good_within as f64 / phase.seconds;
    html! {
        tr class=(if client.is_some() { "client" } else { "phase" }) {
            td { (client.unwrap_or(&phase.name)) @if client.is_none() { " " span.unit { (short(phase.seconds)) " s" } } }
            td.number { (counts.offered) }
            td.number { (counts.sent) }
            td.number { (short(good)) }
            td.number { (figure("goodput_ratio").map_or_else(String::new, |ratio| format!("{ratio:.2}"))) }
            td.number { (figure("success_ratio").map_or_else(String::new, |ratio| format!("{:.1} %", ratio * 100.0))) }
            (cells(counts.accepted_latency, true))
            (cells(counts.rejected_latency, false))
            td { (ends(counts)) }
        }
    }
}

fn cells(latency: Option<Latencies>, three: bool) -> Markup {
    let cell = |pick: fn(Latencies) -> f64| latency.map_or_else(String::new, |ms| short(pick(ms)));
    html! {
        td.number { (cell(|ms| ms.p50)) }
        td.number { (cell(|ms| ms.p99)) }
        @if three { td.number { (cell(|ms| ms.p999)) } }
    }
}

pub(super) fn probes(probes: Option<&Probes>) -> Markup {
    let Some(probes) = probes else { return html! {} };
    let class =
        if probes.restarts == 0 && probes.ready_false == 0 { "badge pass" } else { "badge fail" };
    html! {
        section {
            h2 {
                "Probes " span class=(class) {
                    (probes.restarts) " restarts, " (probes.ready_false) " times no longer ready"
                }
            }
            table {
                thead {
                    tr {
                        th { "path" } th.number { "polls" } th.number { "failures" }
                        th.number { "p50 ms" } th.number { "p99 ms" } th.number { "p999 ms" } th.number { "max ms" }
                        th { "last failure" }
                    }
                }
                tbody {
                    @for probe in &probes.probes {
                        tr {
                            td { code { (probe.path) } }
                            td.number { (probe.polls) }
                            td.number { (probe.failures) }
                            (cells(probe.latency, true))
                            td.number { (probe.latency.map_or_else(String::new, |ms| short(ms.max))) }
                            td {
                                @if let Some(last) = probe.failed.last() {
                                    "at " (short(last.at_s)) " s: " (last.why)
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn generator(result: &RunResult) -> Markup {
    let generator = &result.generator;
    let or_dash = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
    html! {
        section {
            h2 { "Generator" }
            dl.facts {
                dt { "Sent late" }
                dd { (or_dash(generator.lag_p99_ms)) " ms at p99, " (or_dash(generator.lag_max_ms)) " ms at most" }
                dt { "Processor" }
                dd {
                    (or_dash(generator.cores_max)) " of its one core in its busiest phase, "
                    (or_dash(generator.cpu_us_per_request)) " µs a request"
                }
                @if let Some(ceiling) = &generator.ceiling {
                    dt { "Ceiling" }
                    dd {
                        (format!("{:.0}", ceiling.per_s)) " requests per second at "
                        (short(ceiling.cpu_us_per_request)) " µs each, against " (ceiling.against)
                    }
                }
                dt { "Stalls" }
                dd {
                    @match generator.stalls.iter().map(|stall| stall.ms).max_by(f64::total_cmp) {
                        None => { "none over 100 ms" }
                        Some(longest) => { (generator.stalls.len()) ", the longest " (short(longest)) " ms" }
                    }
                }
            }
        }
    }
}

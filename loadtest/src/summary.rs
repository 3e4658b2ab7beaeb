//! From what was recorded to what is reported: pure.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::figures::Figures;
use crate::load::Finished;
use crate::load::record::Tally;
use crate::recovery;
use crate::result::{Capacity, Counts, Generator, Latencies, Phase, Probes, Recovery, RunResult};
use crate::scenario::Scenario;

/// The phases of a run, in all and by client; of one that was cut short, as much as there was.
pub(crate) fn phases(scenario: &Scenario, finished: &Finished) -> Result<Vec<Phase>> {
    let mut phases = Vec::with_capacity(scenario.phases.len());
    let mut start_s = 0.0;
    for (index, phase) in scenario.phases.iter().enumerate() {
        let mut sum = Tally::new()?;
        let mut clients = BTreeMap::new();
        for (client, tally) in scenario.clients.iter().zip(&finished.recorder.tallies[index]) {
            sum.add(tally)?;
            let takes_part = phase
                .arrivals
                .iter()
                .any(|(known, _)| scenario.clients[*known].name == client.name);
            // Answers to another phase's requests may have come within this one.
            if takes_part || tally.good_within > 0 {
                clients.insert(client.name.clone(), counts(tally));
            }
        }
        let rest = (finished.length.as_secs_f64() - start_s).max(0.0);
        let seconds = phase.length.as_secs_f64().min(rest);
        if seconds <= 0.0 {
            // The run ended before it.
            break;
        }
        let busy = finished.seconds_busy.get(index);
        phases.push(Phase {
            name: phase.name.clone(),
            start_s,
            seconds,
            total: counts(&sum),
            clients,
            recovery: None,
            lag: Latencies::of(&finished.recorder.lags_us[index]),
            generator_cores: busy.map(|busy| busy / seconds),
        });
        start_s += seconds;
    }
    for (index, phase) in scenario.phases.iter().enumerate().take(phases.len()) {
        let Some(wanted) = &phase.recovery else { continue };
        let baseline = phases.iter().find(|phase| phase.name == wanted.baseline);
        let p99 = baseline.and_then(|phase| phase.total.accepted_latency).map(|ms| ms.p99);
        let limit_ms = p99.map(|p99| p99 * wanted.factor);
        let samples = finished.recorder.samples[index].as_deref().unwrap_or_default();
        let seconds = limit_ms.and_then(|limit| {
            let limit = std::time::Duration::from_secs_f64(limit / 1e3);
            recovery::recovered(samples, phase.length, limit)
        });
        phases[index].recovery = Some(Recovery {
            baseline: wanted.baseline.clone(),
            factor: wanted.factor,
            limit_ms,
            seconds: seconds.map(|seconds| seconds.as_secs_f64()),
        });
    }
    Ok(phases)
}

fn counts(tally: &Tally) -> Counts {
    let transport_errors = tally.errors.values().sum();
    let answered: u64 = tally.statuses.values().sum();
    Counts {
        offered: tally.offered,
        sent: tally.sent,
        not_sent: tally.not_sent,
        accepted: tally.accepted,
        rejected: answered - tally.accepted,
        late: tally.late,
        wrong: tally.wrong,
        abandoned: tally.abandoned,
        transport_errors,
        succeeded: tally.succeeded,
        failed: tally.failed,
        good_within: tally.good_within,
        unanswered: tally.sent.saturating_sub(answered + transport_errors + tally.abandoned),
        statuses: tally.statuses.clone(),
        errors: tally.errors.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
        accepted_latency: Latencies::of(&tally.accepted_us),
        rejected_latency: Latencies::of(&tally.rejected_us),
    }
}

/// Every figure of the run by its name.
pub(crate) fn figures(
    phases: &[Phase],
    capacity: Option<&Capacity>,
    probes: Option<&Probes>,
    generator: &Generator,
) -> Figures {
    let mut figures = Figures::new();
    let rate = capacity.map(|capacity| capacity.per_s);
    for phase in phases {
        add_counts(&mut figures, &format!("{}.", phase.name), &phase.total, phase.seconds, rate);
        for (client, counts) in &phase.clients {
            let prefix = format!("{}.{client}.", phase.name);
            add_counts(&mut figures, &prefix, counts, phase.seconds, rate);
        }
        if let Some(seconds) = phase.recovery.as_ref().and_then(|recovery| recovery.seconds) {
            figures.insert(format!("{}.recovery_s", phase.name), seconds);
        }
    }
    let mut put = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            figures.insert(name.to_owned(), value);
        }
    };
    if let Some(capacity) = capacity {
        put("capacity.per_s", Some(capacity.per_s));
        put("capacity.p50_ms", capacity.latency.map(|ms| ms.p50));
        put("capacity.p99_ms", capacity.latency.map(|ms| ms.p99));
        put("capacity.again_ratio", capacity.again_per_s.map(|again| again / capacity.per_s));
    }
    put("generator.lag_p99_ms", generator.lag_p99_ms);
    put("generator.lag_max_ms", generator.lag_max_ms);
    put("generator.cores_max", generator.cores_max);
    put("generator.ceiling_per_s", generator.ceiling.as_ref().map(|ceiling| ceiling.per_s));
    put("generator.cpu_us_per_request", generator.cpu_us_per_request);
    put("generator.stalls", Some(generator.stalls.len() as f64));
    if let Some(probes) = probes {
        put("probes.restarts", Some(probes.restarts.into()));
        put("probes.ready_false", Some(probes.ready_false.into()));
        for probe in &probes.probes {
            let kind = probe.kind.name();
            put(&format!("probes.{kind}_polls"), Some(probe.polls as f64));
            put(&format!("probes.{kind}_failures"), Some(probe.failures as f64));
            for (name, value) in quantiles(probe.latency) {
                put(&format!("probes.{kind}_{name}"), value);
            }
        }
    }
    figures
}

fn quantiles(latency: Option<Latencies>) -> [(&'static str, Option<f64>); 4] {
    [
        ("p50_ms", latency.map(|ms| ms.p50)),
        ("p99_ms", latency.map(|ms| ms.p99)),
        ("p999_ms", latency.map(|ms| ms.p999)),
        ("max_ms", latency.map(|ms| ms.max)),
    ]
}

fn add_counts(
    figures: &mut Figures,
    prefix: &str,
    counts: &Counts,
    seconds: f64,
    capacity: Option<f64>,
) {
    let mut put = |name: &str, value: f64| {
        figures.insert(format!("{prefix}{name}"), value);
    };
    let goodput = counts.good_within as f64 / seconds;
    put("offered_per_s", counts.offered as f64 / seconds);
    put("sent_per_s", counts.sent as f64 / seconds);
    put("goodput_per_s", goodput);
    if let Some(capacity) = capacity {
        put("goodput_ratio", goodput / capacity);
    }
    if counts.offered > 0 {
        put("success_ratio", counts.succeeded as f64 / counts.offered as f64);
    }
    for (name, count) in [
        ("offered", counts.offered),
        ("sent", counts.sent),
        ("accepted", counts.accepted),
        ("rejected", counts.rejected),
        ("late", counts.late),
        ("wrong", counts.wrong),
        ("transport_errors", counts.transport_errors),
        ("abandoned", counts.abandoned),
        ("not_sent", counts.not_sent),
        ("failed", counts.failed),
    ] {
        put(name, count as f64);
    }
    for (status, count) in &counts.statuses {
        put(&format!("status_{status}"), *count as f64);
    }
    let kinds = [("accepted", counts.accepted_latency), ("rejected", counts.rejected_latency)];
    for (kind, latency) in kinds {
        for (name, value) in quantiles(latency) {
            if let Some(value) = value {
                put(&format!("{kind}_{name}"), value);
            }
        }
    }
}

/// The generator was late by more than this at p99: what it measured is partly itself.
const LAG_P99_MAX_MS: f64 = 25.0;
/// The generator's one thread was busy for more of the time than this.
const CORES_MAX: f64 = 0.9;
/// More than this share of the generator's ceiling was asked of it.
const CEILING_SHARE_MAX: f64 = 0.8;

/// Why the run proves nothing about the target, phase by phase.
pub(crate) fn limited(phases: &[Phase], generator: &Generator) -> Vec<String> {
    let mut reasons = Vec::new();
    for phase in phases {
        let name = &phase.name;
        if let Some(lag) = phase.lag.filter(|lag| lag.p99 > LAG_P99_MAX_MS) {
            let late = lag.p99;
            reasons.push(format!(
                "{name}: one request in a hundred was sent {late:.0} ms late or more (at most {LAG_P99_MAX_MS} ms is allowed)"
            ));
        }
        if let Some(cores) = phase.generator_cores.filter(|cores| *cores > CORES_MAX) {
            reasons.push(format!("{name}: the generator used {cores:.2} of its one core"));
        }
        let sent = phase.total.sent as f64 / phase.seconds;
        let ceiling = generator.ceiling.as_ref().map(|ceiling| ceiling.per_s);
        if let Some(ceiling) = ceiling.filter(|ceiling| sent > CEILING_SHARE_MAX * ceiling) {
            reasons.push(format!(
                "{name}: {sent:.0} requests per second were sent, and the generator reaches {ceiling:.0} at best"
            ));
        }
        if let Some(count) = phase.total.errors.get(crate::client::OUT_OF_PORTS) {
            reasons.push(format!("{name}: {count} times no port was left to connect from"));
        }
    }
    reasons
}

/// What a reader should know beside the figures.
pub(crate) fn notes(result: &RunResult) -> Vec<String> {
    let mut notes = Vec::new();
    for phase in &result.phases {
        let Counts { offered, not_sent, wrong, unanswered, .. } = phase.total;
        let name = &phase.name;
        if not_sent * 100 > offered {
            notes.push(format!(
                "{name}: {not_sent} of {offered} requests were not sent, since max_outstanding were in flight: less was offered than planned"
            ));
        }
        if wrong > 0 {
            notes.push(format!("{name}: {wrong} answers had another size than the recorded one"));
        }
        if unanswered > 0 {
            notes.push(format!("{name}: {unanswered} requests were still out when the run ended"));
        }
    }
    let stalls = &result.generator.stalls;
    if let Some(longest) = stalls.iter().map(|stall| stall.ms).max_by(f64::total_cmp) {
        notes.push(format!(
            "the machine did not run this program {} times for more than 100 ms, {longest:.0} ms at the longest",
            stalls.len()
        ));
    }
    if let Some(Capacity { turned_away, .. }) =
        result.capacity.as_ref().filter(|c| c.turned_away > 0)
    {
        notes.push(format!(
            "{turned_away} requests were turned away while capacity was measured: fewer connections would do"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Catalog;
    use crate::result::tests::result;
    use crate::scenario::{SAMPLE, Scenario};

    #[test]
    fn there_is_no_figure_that_an_expectation_cannot_name() {
        let scenario = Scenario::parse("a.toml", SAMPLE).unwrap();
        let catalog = Catalog::new(&scenario.phases, &scenario.clients, &scenario.probes);
        let result = result();
        let figures = figures(
            &result.phases,
            result.capacity.as_ref(),
            result.probes.as_ref(),
            &result.generator,
        );
        assert!(figures.len() > 50);
        for name in figures.keys() {
            assert_eq!(catalog.check(name), Ok(()));
        }
    }

    #[test]
    fn figures_follow_from_counts() {
        let result = result();
        let found = figures(&result.phases, result.capacity.as_ref(), None, &result.generator);
        for (name, value) in [
            ("base.offered_per_s", 70.0),
            ("base.goodput_per_s", 70.0),
            ("base.goodput_ratio", 0.7),
            ("after.success_ratio", 0.1),
            ("after.recovery_s", 2.5),
            ("after.noisy.status_503", 900.0),
            ("base.accepted_p99_ms", 25.0),
            ("capacity.per_s", 100.0),
            ("capacity.again_ratio", 0.98),
        ] {
            assert!((found[name] - value).abs() < 1e-9, "{name} = {}", found[name]);
        }
    }

    #[test]
    fn a_generator_at_its_limit_says_so() {
        let mut result = result();
        assert!(limited(&result.phases, &result.generator).is_empty());
        result.phases[0].lag.as_mut().unwrap().p99 = 26.0;
        result.phases[1].generator_cores = Some(0.95);
        result.generator.ceiling.as_mut().unwrap().per_s = 110.0;
        let reasons = limited(&result.phases, &result.generator);
        assert_eq!(reasons.len(), 3, "{reasons:?}");
        assert!(reasons[0].starts_with("base: one request in a hundred was sent 26 ms late"));
    }

    #[test]
    fn what_was_not_offered_is_told() {
        let mut result = result();
        result.generator.stalls.clear();
        assert!(notes(&result).is_empty());
        result.phases[0].total.not_sent = 10;
        result.phases[1].total.unanswered = 1;
        assert_eq!(notes(&result).len(), 2);
    }
}

//! Clients, phases, probes and expectations: what a scenario has several of.

use super::*;

const SHAPES: [&str; 5] = ["constant", "poisson", "ramp", "step", "spike"];

impl Checker {
    pub(super) fn client(&mut self, raw: raw::Client) -> Client {
        let at = format!("client.{}", raw.name);
        self.name("client.name", &raw.name);
        let key_header = raw.key_header.unwrap_or_else(|| "x-client-id".to_owned());
        for name in raw.headers.keys().chain([&key_header]) {
            if name.parse::<hyper::header::HeaderName>().is_err() {
                self.wrong(format!("{at}: {name:?} is no name of a header"));
            }
        }
        for (name, value) in &raw.headers {
            if value.parse::<hyper::header::HeaderValue>().is_err() {
                self.wrong(format!("{at}.headers.{name}: {value:?} is no value of a header"));
            }
        }
        if let Some(class) = &raw.class {
            self.name(&format!("{at}.class"), class);
        }
        let retries = self.int(&format!("{at}.retries"), raw.retries, (0, 10), 0);
        if raw.retries.unwrap_or(0) == 0 && raw.backoff_ms.is_some() {
            self.wrong(format!("{at}.backoff_ms: without retries there is nothing to wait for"));
        }
        let mut optional = |key: &str, value: Option<i64>| {
            value.map(|ms| self.millis(&format!("{at}.{key}"), Some(ms), (1, 3_600_000), 1000))
        };
        let deadline = optional("deadline_ms", raw.deadline_ms);
        let abandon_after = optional("abandon_after_ms", raw.abandon_after_ms);
        let timeout = optional("timeout_ms", raw.timeout_ms).unwrap_or(Duration::from_secs(30));
        let most = (1, 20_000);
        Client {
            count: self.count(&format!("{at}.count"), raw.count, (1, 1000), 1),
            key_header,
            class: raw.class,
            deadline,
            max_outstanding: self.count(
                &format!("{at}.max_outstanding"),
                raw.max_outstanding,
                most,
                1024,
            ),
            retries: u32::try_from(retries).unwrap_or_default(),
            backoff: self.millis(&format!("{at}.backoff_ms"), raw.backoff_ms, (1, 60_000), 100),
            abandon_after,
            timeout,
            headers: raw.headers.into_iter().collect(),
            name: raw.name,
        }
    }

    pub(super) fn phase(
        &mut self,
        raw: raw::Phase,
        clients: &[Client],
        phases: &[String],
    ) -> Phase {
        let at = format!("phase.{}", raw.name);
        self.name("phase.name", &raw.name);
        if RESERVED.contains(&raw.name.as_str()) {
            self.wrong(format!("{at}: {} name other figures", RESERVED.join(", ")));
        }
        let seconds = self.float(&format!("{at}.seconds"), Some(raw.seconds), (0.1, DAY_S), 1.0);
        let arrivals = self.all_arrivals(&at, seconds, raw.arrivals, clients);
        let recovery = raw.recovery.map(|recovery| {
            let field = format!("{at}.recovery");
            if !phases.contains(&recovery.baseline) || recovery.baseline == raw.name {
                let known = phases.iter().map(String::as_str).filter(|name| *name != raw.name);
                self.wrong(format!(
                    "{field}.baseline = {:?}: there is no other phase of that name{}",
                    recovery.baseline,
                    hint(&recovery.baseline, known)
                ));
            }
            let factor = self.float(&format!("{field}.factor"), recovery.factor, (1.0, 100.0), 1.2);
            Recovery { baseline: recovery.baseline, factor }
        });
        Phase { name: raw.name, length: Duration::from_secs_f64(seconds), arrivals, recovery }
    }

    fn all_arrivals(
        &mut self,
        at: &str,
        seconds: f64,
        raw: BTreeMap<String, raw::Arrivals>,
        clients: &[Client],
    ) -> Vec<(usize, Pattern<Rate>)> {
        let mut found = Vec::new();
        for (client, arrivals) in raw {
            let field = format!("{at}.arrivals.{client}");
            let Some(index) = clients.iter().position(|known| known.name == client) else {
                let known = clients.iter().map(|client| client.name.as_str());
                let meant = hint(&client, known);
                self.wrong(format!("{field}: there is no client of that name{meant}"));
                continue;
            };
            if let Some(pattern) = self.pattern(&field, seconds, &arrivals) {
                found.push((index, pattern));
            }
        }
        found
    }

    fn pattern(&mut self, field: &str, seconds: f64, raw: &raw::Arrivals) -> Option<Pattern<Rate>> {
        let kind = raw.kind.as_str();
        let wanted: &[&str] = match kind {
            "constant" | "poisson" => &["rate"],
            "ramp" => &["from", "to", "random"],
            "step" => &["from", "to", "steps", "random"],
            "spike" => &["base", "peak", "at_s", "for_s", "random"],
            _ => {
                let (known, meant) = (SHAPES.join(", "), hint(kind, SHAPES));
                self.wrong(format!("{field}.kind = {kind:?}: expected {known}{meant}"));
                return None;
            }
        };
        let given = [
            ("rate", raw.rate.is_some()),
            ("from", raw.from.is_some()),
            ("to", raw.to.is_some()),
            ("steps", raw.steps.is_some()),
            ("base", raw.base.is_some()),
            ("peak", raw.peak.is_some()),
            ("at_s", raw.at_s.is_some()),
            ("for_s", raw.for_s.is_some()),
            ("random", raw.random.is_some()),
        ];
        for (key, given) in given {
            if given && !wanted.contains(&key) {
                let keys = wanted.join(", ");
                self.wrong(format!("{field}.{key}: kind = {kind:?} takes {keys}"));
            } else if !given && wanted.contains(&key) && key != "random" {
                self.wrong(format!("{field}.{key}: kind = {kind:?} needs it"));
            }
        }
        let mut rate = |key: &str, value: &Option<raw::Rate>| {
            value.as_ref().and_then(|value| self.rate(&format!("{field}.{key}"), value))
        };
        let (constant, from, to, base, peak) = (
            rate("rate", &raw.rate),
            rate("from", &raw.from),
            rate("to", &raw.to),
            rate("base", &raw.base),
            rate("peak", &raw.peak),
        );
        let shape = match kind {
            "constant" | "poisson" => Shape::Constant(constant?),
            "ramp" => Shape::Ramp { from: from?, to: to? },
            "step" => {
                let steps = self.int(&format!("{field}.steps"), raw.steps, (1, 1000), 1);
                Shape::Step { from: from?, to: to?, steps: u32::try_from(steps).ok()? }
            }
            _ => {
                let at = self.float(&format!("{field}.at_s"), raw.at_s, (0.0, seconds), 0.0);
                let room = (seconds - at).max(0.0);
                let length = self.float(&format!("{field}.for_s"), raw.for_s, (0.0, room), 0.0);
                Shape::Spike {
                    base: base?,
                    peak: peak?,
                    at: Duration::from_secs_f64(at),
                    length: Duration::from_secs_f64(length),
                }
            }
        };
        Some(Pattern { shape, random: kind == "poisson" || raw.random == Some(true) })
    }

    fn rate(&mut self, field: &str, value: &raw::Rate) -> Option<Rate> {
        let times = |text: &str| text.strip_suffix('x')?.trim().parse::<f64>().ok();
        match value {
            raw::Rate::Number(rate) if (0.0..=RATE_MAX).contains(rate) => {
                return Some(Rate::PerSecond(*rate));
            }
            raw::Rate::Number(rate) => {
                self.wrong(format!("{field} = {rate}: expected 0 to {RATE_MAX} per second"));
            }
            raw::Rate::Text(text) => match times(text) {
                Some(times) if (0.0..=TIMES_MAX).contains(&times) => {
                    return Some(Rate::TimesCapacity(times));
                }
                _ => self.wrong(format!(
                    "{field} = {text:?}: expected requests per second, or a multiple of capacity \
                     from \"0x\" to \"{TIMES_MAX}x\""
                )),
            },
        }
        None
    }

    pub(super) fn probe(&mut self, raw: raw::Probe) -> Option<ProbeSettings> {
        let Some(kind) = Kind::parse(&raw.name) else {
            let names = Kind::ALL.map(Kind::name);
            let (known, meant) = (names.join(", "), hint(&raw.name, names));
            self.wrong(format!("probe.name = {:?}: expected {known}{meant}", raw.name));
            return None;
        };
        let at = format!("probe.{}", raw.name);
        let usual = ProbeSettings::new(kind);
        let path = raw.path.unwrap_or(usual.path);
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.wrong(format!("{at}.path = {path:?}: a path begins with / and has no spaces"));
        }
        // Kubernetes allows nothing but 1 for the other two.
        let successes = if kind == Kind::Ready { 100 } else { 1 };
        let mut threshold = |key: &str, value: Option<i64>, most: i64, usual: u32| {
            let found = self.int(&format!("{at}.{key}"), value, (1, most), usual.into());
            u32::try_from(found).unwrap_or(usual)
        };
        let failure_threshold =
            threshold("failure_threshold", raw.failure_threshold, 1000, usual.failure_threshold);
        let success_threshold = threshold(
            "success_threshold",
            raw.success_threshold,
            successes,
            usual.success_threshold,
        );
        let hour = 3_600_000;
        Some(ProbeSettings {
            kind,
            path,
            period: self.millis(&format!("{at}.period_ms"), raw.period_ms, (10, hour), 10_000),
            timeout: self.millis(&format!("{at}.timeout_ms"), raw.timeout_ms, (1, 60_000), 1000),
            failure_threshold,
            success_threshold,
            initial_delay: self.millis(
                &format!("{at}.initial_delay_ms"),
                raw.initial_delay_ms,
                (0, hour),
                0,
            ),
        })
    }

    pub(super) fn expectation(
        &mut self,
        raw: &raw::Expect,
        catalog: &Catalog,
    ) -> Option<Expectation> {
        let at = format!("expect.{}", raw.figure);
        if let Err(problem) = catalog.check(&raw.figure) {
            self.wrong(format!("expect.figure: {problem}"));
        }
        let mut given = [
            (Limit::AtMost, "at_most", &raw.at_most),
            (Limit::AtLeast, "at_least", &raw.at_least),
            (Limit::Equals, "equals", &raw.equals),
        ]
        .into_iter()
        .filter_map(|(limit, key, value)| Some((limit, key, value.as_ref()?)));
        let (Some((limit, key, value)), None) = (given.next(), given.next()) else {
            self.wrong(format!("{at}: expected one of at_most, at_least, equals"));
            return None;
        };
        let text = match value {
            raw::NumberOrText::Number(number) => number.to_string(),
            raw::NumberOrText::Text(text) => text.clone(),
        };
        match Expectation::new(&raw.figure, limit, &text, catalog) {
            Ok(expectation) => Some(expectation),
            Err(problem) => {
                self.wrong(format!("{at}.{key}: {problem}"));
                None
            }
        }
    }
}

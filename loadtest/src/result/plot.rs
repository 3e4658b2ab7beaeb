//! Plots over time as SVG: pure, without scripts, in the colours of the page they stand on.

mod scale;

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

use scale::{Scale, decimal};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 26.0;

/// A plot.
pub struct Plot<'a> {
    /// What is shown.
    pub title: &'a str,
    /// What the figures are in.
    pub unit: &'a str,
    /// In units of the drawing, of which its width has 960.
    pub height: f64,
    /// From 0 to this many seconds.
    pub seconds: f64,
    /// Whether the figures are drawn by their logarithms.
    pub logarithmic: bool,
    /// Stretches that are told apart by their background.
    pub phases: &'a [Span],
    /// The curves.
    pub series: Vec<Series<'a>>,
    /// A value to compare with, and what it is.
    pub reference: Option<(f64, String)>,
    /// Stretches of a band below the curves, by class of colour.
    pub band: Vec<Span>,
    /// Moments at which the machine stood still.
    pub stalls: &'a [f64],
}

/// A stretch of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What it is.
    pub label: String,
    /// Class of colour.
    pub class: &'static str,
    /// Seconds.
    pub from: f64,
    /// Seconds.
    pub to: f64,
}

/// A curve.
pub struct Series<'a> {
    /// What it is.
    pub label: &'a str,
    /// Class of colour.
    pub class: &'static str,
    /// Seconds and value; a gap where there is none.
    pub points: Vec<(f64, Option<f64>)>,
    /// Filled down to the axis.
    pub area: bool,
    /// Dots, not a line: single events.
    pub dots: bool,
}

// ===== impl Plot =====

impl Plot<'_> {
    /// The plot with its legend; nothing where no series has a value.
    pub fn render(&self) -> Markup {
        let shown: Vec<&Series<'_>> =
            self.series.iter().filter(|series| series.values().next().is_some()).collect();
        if shown.is_empty() {
            return html! {};
        }
        let bottom = self.height - BOTTOM - if self.band.is_empty() { 0.0 } else { 16.0 };
        let values = shown.iter().flat_map(|series| series.values());
        let values = values.chain(self.reference.iter().map(|(value, _)| *value));
        let y = Scale::new(values, self.logarithmic, (bottom, TOP));
        let x =
            |seconds: f64| LEFT + (WIDTH - LEFT - RIGHT) * (seconds / self.seconds).clamp(0.0, 1.0);
        html! {
            figure {
                figcaption {
                    strong { (self.title) } " " span.unit { (self.unit) }
                    @for series in &shown {
                        " " span.key { span class={ "swatch " (series.class) } {} (series.label) }
                    }
                    @if !self.stalls.is_empty() {
                        " " span.key { span.swatch.stall {} "the machine stood still" }
                    }
                }
                svg viewBox={ "0 0 " (WIDTH) " " (self.height) } role="img" aria-label=(self.title) {
                    (self.backdrop(&x, bottom))
                    (grid(&y))
                    (self.time_axis(&x, bottom))
                    @for at in self.stalls {
                        line.stall x1=(px(x(*at))) x2=(px(x(*at))) y1=(TOP) y2=(px(bottom)) {}
                    }
                    @if let Some((value, label)) = &self.reference {
                        line.reference x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y.at(*value))) y2=(px(y.at(*value))) {}
                        text.reference x=(WIDTH - RIGHT - 4.0) y=(px(y.at(*value) - 4.0)) text-anchor="end" { (label) }
                    }
                    @for series in &shown { (series.draw(&x, &y, bottom)) }
                    @for span in &self.band {
                        rect class=(span.class) x=(px(x(span.from))) y=(px(bottom + 4.0)) height="8"
                            width=(px((x(span.to) - x(span.from)).max(1.0))) { title { (span.label) } }
                    }
                }
            }
        }
    }

    fn backdrop(&self, x: &impl Fn(f64) -> f64, bottom: f64) -> Markup {
        html! {
            @for (index, phase) in self.phases.iter().enumerate() {
                rect class=(if index % 2 == 0 { "phase" } else { "phase odd" })
                    x=(px(x(phase.from))) y="0" width=(px(x(phase.to) - x(phase.from))) height=(px(bottom)) {}
                text.phase x=(px(x(phase.from) + 5.0)) y="14" { (phase.label) }
            }
        }
    }

    fn time_axis(&self, x: &impl Fn(f64) -> f64, bottom: f64) -> Markup {
        let base = self.height - 8.0;
        html! {
            line.axis x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(bottom)) y2=(px(bottom)) {}
            @for seconds in scale::round_steps(0.0, self.seconds, 10) {
                text x=(px(x(seconds))) y=(px(base)) text-anchor="middle" { (decimal(seconds)) " s" }
            }
        }
    }
}

fn grid(y: &Scale) -> Markup {
    html! {
        @for value in y.ticks() {
            line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(px(y.at(value))) y2=(px(y.at(value))) {}
            text x=(LEFT - 6.0) y=(px(y.at(value) + 4.0)) text-anchor="end" { (decimal(value)) }
        }
    }
}

// ===== impl Series =====

impl Series<'_> {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().filter_map(|(_, value)| *value)
    }

    fn draw(&self, x: &impl Fn(f64) -> f64, y: &Scale, bottom: f64) -> Markup {
        if self.dots {
            return html! {
                g class={ "dots " (self.class) } {
                    @for (seconds, value) in &self.points {
                        @if let Some(value) = value {
                            circle cx=(px(x(*seconds))) cy=(px(y.at(*value))) r="1.6" {}
                        }
                    }
                }
            };
        }
        let mut line = String::new();
        let mut area = String::new();
        // A curve is drawn piece by piece: where nothing was measured there is nothing to draw.
        for piece in self.points.split(|(_, value)| value.is_none()) {
            let mut points =
                piece.iter().filter_map(|(seconds, value)| Some((x(*seconds), y.at((*value)?))));
            let Some((first, start)) = points.next() else { continue };
            // Writing to a string does not fail.
            let _ = write!(line, "M{} {}", px(first), px(start));
            let _ = write!(area, "M{} {}V{}", px(first), px(bottom), px(start));
            let mut last = first;
            for (at, value) in points {
                let _ = write!(line, "L{} {}", px(at), px(value));
                let _ = write!(area, "L{} {}", px(at), px(value));
                last = at;
            }
            if last == first {
                // One value alone is a dash, or nobody would see it.
                let _ = write!(line, "h2");
            }
            let _ = write!(area, "V{}Z", px(bottom));
        }
        html! {
            @if self.area { path class={ "area " (self.class) } d=(PreEscaped(area)) {} }
            path class={ "line " (self.class) } d=(PreEscaped(line)) {}
        }
    }
}

/// A coordinate, to a tenth of a pixel.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, Option<f64>)>) -> Plot<'static> {
        Plot {
            title: "Answers <of> a run",
            unit: "per second",
            height: 200.0,
            seconds: 10.0,
            logarithmic: false,
            phases: &[],
            series: vec![Series { label: "good", class: "good", points, area: false, dots: false }],
            reference: None,
            band: Vec::new(),
            stalls: &[],
        }
    }

    #[test]
    fn curves_have_gaps_and_stay_within() {
        let points = [Some(10.0), Some(5.0), None, Some(0.0)];
        let points = points.into_iter().enumerate().map(|(at, value)| (at as f64 * 5.0, value));
        let text = plot(points.collect()).render().into_string();
        // The first is at the left and at the top, the last beyond the right and at the bottom.
        assert!(text.contains("d=\"M58 22L503 98M948 174h2\""), "{text}");
        assert!(text.contains("Answers &lt;of&gt; a run"));
    }

    #[test]
    fn nothing_measured_nothing_drawn() {
        assert_eq!(plot(vec![(0.0, None)]).render().into_string(), "");
    }

    #[test]
    fn coordinates_are_short() {
        assert_eq!((px(12.0), px(12.345), px(-0.04)), ("12".into(), "12.3".into(), "-0".into()));
    }
}

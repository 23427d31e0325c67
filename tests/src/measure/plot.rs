//! A plot as SVG text: lines over two axes, logarithmic or linear.

use super::number;
use std::fmt::Write;

/// A line with its spread.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// x, and least, middle and largest y.
    pub points: Vec<(f64, [f64; 3])>,
}

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above all.
    pub title: String,
    /// Names of the axes.
    pub axes: [String; 2],
    /// Whether both axes are logarithmic; linear ones begin at 0.
    pub logarithmic: bool,
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 740.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 320.0;
const COLOURS: [&str; 6] = ["#0b62a4", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#555555"];

/// One axis: values to places.
struct Axis {
    logarithmic: bool,
    values: [f64; 2],
    places: [f64; 2],
}

impl Axis {
    fn new(logarithmic: bool, values: impl Iterator<Item = f64>, places: [f64; 2]) -> Self {
        let positive = values.filter(|value| *value > 0.0);
        let (low, high) =
            positive.fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), v| (v.min(low), v.max(high)));
        let low = if logarithmic { 10f64.powf(low.min(high).log10().floor()) } else { 0.0 };
        let high = if logarithmic { 10f64.powf(high.log10().ceil()).max(low * 10.0) } else { high * 1.1 };
        Self { logarithmic, values: [low, high], places }
    }

    fn at(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic { value.max(self.values[0]).log10() } else { value };
        let [low, high] = self.values.map(scale);
        let [from, to] = self.places;
        from + (scale(value) - low) / (high - low) * (to - from)
    }

    fn ticks(&self) -> Vec<f64> {
        let [low, high] = self.values;
        if !self.logarithmic {
            return (0..=5).map(|tick| high * f64::from(tick) / 5.0).collect();
        }
        let decades = (high / low).log10().round() as i32;
        (0..=decades).map(|decade| low * 10f64.powi(decade)).collect()
    }
}

impl Plot {
    /// The file's text.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x = Axis::new(self.logarithmic, points().map(|point| point.0), [LEFT, RIGHT]);
        let y = Axis::new(self.logarithmic, points().flat_map(|point| point.1), [BOTTOM, TOP]);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        text(&mut out, [WIDTH / 2.0, 24.0], "middle", &self.title);
        text(&mut out, [(LEFT + RIGHT) / 2.0, BOTTOM + 38.0], "middle", &self.axes[0]);
        text(&mut out, [8.0, TOP - 12.0], "start", &self.axes[1]);
        for tick in x.ticks() {
            line(&mut out, [x.at(tick), TOP], [x.at(tick), BOTTOM], "#dddddd");
            text(&mut out, [x.at(tick), BOTTOM + 18.0], "middle", &plain(tick));
        }
        for tick in y.ticks() {
            line(&mut out, [LEFT, y.at(tick)], [RIGHT, y.at(tick)], "#dddddd");
            text(&mut out, [LEFT - 8.0, y.at(tick) + 4.0], "end", &plain(tick));
        }
        for (at, series) in self.series.iter().enumerate() {
            draw(&mut out, series, &x, &y, COLOURS[at % COLOURS.len()]);
            let key = [LEFT + 330.0 * (at % 2) as f64, BOTTOM + 62.0 + 20.0 * (at / 2) as f64];
            line(
                &mut out,
                [key[0], key[1] - 4.0],
                [key[0] + 24.0, key[1] - 4.0],
                COLOURS[at % COLOURS.len()],
            );
            text(&mut out, [key[0] + 32.0, key[1]], "start", &series.name);
        }
        out + "</svg>\n"
    }
}

fn draw(out: &mut String, series: &Series, x: &Axis, y: &Axis, colour: &str) {
    let mut path = String::new();
    for (value, [low, middle, high]) in &series.points {
        let _ = write!(path, "{:.1},{:.1} ", x.at(*value), y.at(*middle));
        if low < high {
            line(out, [x.at(*value), y.at(*low)], [x.at(*value), y.at(*high)], colour);
        }
    }
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
        path.trim()
    );
}

fn line(out: &mut String, from: [f64; 2], to: [f64; 2], colour: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
        from[0], from[1], to[0], to[1]
    );
}

fn text(out: &mut String, at: [f64; 2], anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{text}</text>", at[0], at[1]);
}

/// A tick without needless digits.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { number(value).trim_end_matches('0').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_values() {
        let log = Axis::new(true, [10.0, 900.0].into_iter(), [0.0, 200.0]);
        assert_eq!((log.at(10.0), log.at(100.0), log.at(1000.0)), (0.0, 100.0, 200.0));
        assert_eq!(log.ticks(), [10.0, 100.0, 1000.0]);
        let linear = Axis::new(false, [100.0].into_iter(), [300.0, 0.0]);
        assert_eq!(linear.at(0.0), 300.0);
        assert!(linear.at(100.0) > 0.0);
    }

    #[test]
    fn every_series_is_drawn_and_named() {
        let series = |name: &str| Series { name: name.into(), points: vec![(10.0, [1.0, 2.0, 3.0])] };
        let plot = Plot {
            title: "a < b".into(),
            axes: ["x".into(), "y".into()],
            logarithmic: true,
            series: vec![series("one"), series("two")],
        };
        let svg = plot.svg();
        assert!(svg.contains(">one<") && svg.contains(">two<") && svg.contains("a &lt; b"));
        assert_eq!(svg.matches("<polyline").count(), 2);
    }
}

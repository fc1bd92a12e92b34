//! Two plots of the medians, as SVG: `throughput.svg` and `ratio.svg`.
//!
//! Called by `main` beside `report`. The axis of clients is logarithmic.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::operation::Operation;
use crate::report::thousands;
use crate::results::{Cell, Results};
use crate::settings::{Kind, Settings};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line of a plot: its name, and its points by log2 of the clients.
struct Line {
    name: String,
    color: RGBColor,
    points: Vec<(f64, f64)>,
}

/// Distinct also to those who see colors differently (Okabe and Ito's palette).
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
    RGBColor(0, 0, 0),
];

/// Operations a second by clients, one chart for each operation.
pub fn throughput(path: &Path, settings: &Settings, results: &Results) -> Result<(), String> {
    let rows = settings.operations.len().div_ceil(2);
    let size = (1000, 60 + 260 * rows as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let draw = || {
        root.fill(&WHITE)?;
        let titled = root.titled("Operations a second by clients (medians)", ("sans-serif", 20))?;
        let charts = titled.split_evenly((rows, 2));
        for (area, operation) in charts.iter().zip(&settings.operations) {
            let lines: Vec<Line> = settings
                .systems
                .iter()
                .zip([COLORS[0], COLORS[2], COLORS[1]])
                .map(|(kind, color)| Line {
                    name: kind.label().to_owned(),
                    color,
                    points: points(settings, |clients| {
                        let cell = cell(*kind, *operation, clients);
                        results.median(cell, |row| row.rate())
                    }),
                })
                .collect();
            chart(area, operation.label(), settings, &lines, &|rate| {
                thousands(*rate)
            })?;
        }
        root.present()
    };
    draw().map_err(|error| format!("throughput.svg: {error}"))
}

/// How many times etcd's throughput, by clients, a line for each operation.
pub fn ratio(path: &Path, settings: &Settings, results: &Results) -> Result<(), String> {
    let root = SVGBackend::new(path, (1000, 560)).into_drawing_area();
    let draw = || {
        root.fill(&WHITE)?;
        let lines = |kind: Kind| -> Vec<Line> {
            settings
                .operations
                .iter()
                .zip(COLORS)
                .map(|(operation, color)| Line {
                    name: operation.label().to_owned(),
                    color,
                    points: points(settings, |clients| {
                        let cell = cell(kind, *operation, clients);
                        Some(results.ratio(cell, |row| row.rate())?.median)
                    }),
                })
                .collect()
        };
        let title = "Throughput as a multiple of etcd's in the same round (medians)";
        let titled = root.titled(title, ("sans-serif", 20))?;
        let kinds = settings.systems.iter().filter(|kind| **kind != Kind::Etcd);
        let kinds: Vec<Kind> = kinds.copied().collect();
        for (area, kind) in titled.split_evenly((1, kinds.len().max(1))).iter().zip(kinds) {
            chart(area, kind.label(), settings, &lines(kind), &|times| {
                format!("{times:.1}×")
            })?;
        }
        root.present()
    };
    draw().map_err(|error| format!("ratio.svg: {error}"))
}

fn cell(kind: Kind, operation: Operation, clients: usize) -> Cell {
    Cell {
        kind,
        operation,
        clients,
    }
}

fn points(settings: &Settings, value: impl Fn(usize) -> Option<f64>) -> Vec<(f64, f64)> {
    let all = settings.clients.iter();
    all.filter_map(|clients| Some(((*clients as f64).log2(), value(*clients)?)))
        .collect()
}

fn chart<'a>(
    area: &Area<'a>,
    title: &str,
    settings: &Settings,
    lines: &[Line],
    label: &dyn Fn(&f64) -> String,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let drawn: Vec<&Line> = lines.iter().filter(|line| !line.points.is_empty()).collect();
    let values = drawn.iter().flat_map(|line| &line.points);
    let top = values.map(|(_, value)| *value).fold(1.0, f64::max) * 1.15;
    let marks: Vec<f64> = settings.clients.iter().map(|n| (*n as f64).log2()).collect();
    let (first, last) = marks.iter().fold((f64::MAX, 0.0f64), |(least, most), at| {
        (least.min(*at), most.max(*at))
    });
    // The legend stands beside the lines, not on them.
    let room = 0.45 * (last - first).max(1.0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(56)
        .build_cartesian_2d(
            Clients {
                marks,
                range: first - 0.3..last + 0.3 + room,
            },
            0.0..top,
        )?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .y_label_formatter(label)
        .y_labels(6)
        .draw()?;
    for line in drawn {
        let color = line.color;
        let series = LineSeries::new(line.points.iter().copied(), color.stroke_width(2)).point_size(3);
        chart
            .draw_series(series)?
            .label(line.name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()
}

/// An axis of log2 of the clients, with a mark for each number of them that was measured.
struct Clients {
    marks: Vec<f64>,
    range: Range<f64>,
}

impl Ranged for Clients {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        left + (share * f64::from(right - left)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Clients {
    fn format(value: &f64) -> String {
        thousands(value.exp2().round())
    }
}

package main

import (
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// bar is one of a plot: a median with the range of all rounds.
type bar struct {
	label string
	summary
}

// drawBars is a plot of horizontal bars.
func drawBars(title, unit string, bars []bar) string {
	const left, width, row, top = 150, 640, 30, 56
	most := 0.0
	for _, b := range bars {
		most = max(most, b.greatest)
	}
	if most <= 0 {
		most = 1
	}
	x := func(v float64) float64 { return left + max(v, 0)/most*(width-left-90) }
	var w strings.Builder
	height := top + row*len(bars) + 16
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&w, `<rect width="%d" height="%d" fill="#ffffff"/><text x="12" y="22" font-size="15">%s</text><text x="12" y="40" fill="#666666">%s; bars are medians, lines the range of all rounds</text>`+"\n",
		width, height, html.EscapeString(title), html.EscapeString(unit))
	for i, b := range bars {
		y := top + row*i
		colour := "#9aa5b1"
		if strings.HasPrefix(b.label, "hauberk") || strings.HasSuffix(b.label, "rules") {
			colour = "#b3541e"
		}
		fmt.Fprintf(&w, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+17, html.EscapeString(b.label))
		fmt.Fprintf(&w, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, left, y+4, x(b.median)-left, row-10, colour)
		fmt.Fprintf(&w, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#222222"/>`, x(b.least), x(b.greatest), y+14, y+14)
		fmt.Fprintf(&w, `<text x="%.1f" y="%d">%s</text>`+"\n", x(b.greatest)+6, y+18, number(b.median))
	}
	w.WriteString("</svg>\n")
	return w.String()
}

// line is a series of points of a plot.
type line struct {
	label string
	x, y  []float64
}

var colours = []string{"#444444", "#9aa5b1", "#b3541e", "#2f6f4f", "#3b5b92", "#8a4fa3", "#bbbbbb", "#d98a5b"}

// drawLines is a plot of latency over rate.
func drawLines(title, unit string, lines []line) string {
	const width, height, left, top, right, bottom = 640, 360, 60, 56, 150, 40
	mx, my := 1.0, 0.0
	for _, l := range lines {
		for i := range l.x {
			mx, my = max(mx, l.x[i]), max(my, min(l.y[i], 20))
		}
	}
	my = max(my, 0.001)
	px := func(v float64) float64 { return left + v/mx*(width-left-right) }
	py := func(v float64) float64 { return height - bottom - min(v, my)/my*(height-top-bottom) }
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height, width, height)
	fmt.Fprintf(&w, `<rect width="%d" height="%d" fill="#ffffff"/><text x="12" y="22" font-size="15">%s</text><text x="12" y="40" fill="#666666">%s</text>`+"\n",
		width, height, html.EscapeString(title), html.EscapeString(unit))
	for i := range 5 {
		fx, fy := mx*float64(i)/4, my*float64(i)/4
		fmt.Fprintf(&w, `<text x="%.1f" y="%d" text-anchor="middle">%s</text><text x="%d" y="%.1f" text-anchor="end">%s</text><line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#eeeeee"/>`+"\n",
			px(fx), height-bottom+18, number(fx), left-6, py(fy)+4, number(fy), left, width-right, py(fy), py(fy))
	}
	for i, l := range lines {
		colour := colours[i%len(colours)]
		var points []string
		for j := range l.x {
			points = append(points, fmt.Sprintf("%.1f,%.1f", px(l.x[j]), py(l.y[j])))
		}
		fmt.Fprintf(&w, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/><text x="%d" y="%d" fill="%s">%s</text>`+"\n",
			colour, strings.Join(points, " "), width-right+10, top+18*i+10, colour, html.EscapeString(l.label))
	}
	w.WriteString("</svg>\n")
	return w.String()
}

// plots draws each scenario that the results have and returns the files' names.
func (r *results) plots(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var files []string
	for _, s := range allScenarios() {
		text := r.plot(&s)
		if text == "" {
			continue
		}
		name := s.name + ".svg"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // documentation
			return nil, err
		}
		files = append(files, name)
	}
	return files, nil
}

func (r *results) plot(s *scenario) string {
	pairs := r.pairsIn(s.name)
	if s.name == "sweep" {
		return r.plotSweep(s, pairs)
	}
	metric, unit := ratioMetric(s), map[string]string{mCPU: "CPU µs each, both proxies", mCPUPerGB: "CPU seconds per GB, both proxies",
		mPSS: "PSS MB, both proxies", mPerConn: "KB per connection, both proxies"}[ratioMetric(s)]
	var bars []bar
	for _, p := range pairs {
		if v := summarise(r.values(s.name, p, metric, "")); v.n > 0 {
			bars = append(bars, bar{p, v})
		}
	}
	if len(bars) == 0 {
		return ""
	}
	return drawBars(s.title, unit, bars)
}

func (r *results) plotSweep(s *scenario, pairs []string) string {
	var lines []line
	for _, p := range pairs {
		l := line{label: p}
		for _, rate := range sweepRates {
			if v := summarise(r.values(s.name, p, "p99_ms@"+strconv.FormatFloat(rate, 'f', 0, 64), "")); v.n > 0 {
				l.x, l.y = append(l.x, rate), append(l.y, v.median)
			}
		}
		if len(l.x) > 0 {
			lines = append(lines, l)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return drawLines(s.title, "p99 ms (cut at 20) over requests per second", lines)
}

package run

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"
)

// Output is how a command prints: its results on Out, everything else on Err.
type Output struct {
	Out, Err io.Writer
	// Format is table, wide, json or yaml.
	Format string
	// Color is auto, always or never; NO_COLOR (no-color.org) means never for auto.
	Color string
}

// AddFlags defines -o and --color.
func (o *Output) AddFlags(f *pflag.FlagSet) {
	f.StringVarP(&o.Format, "output", "o", "table", "table, wide, json or yaml")
	f.StringVar(&o.Color, "color", "auto", "auto, always or never")
}

// FormatsAnnotation is a command's annotation that names formats besides the
// usual ones, separated by spaces.
const FormatsAnnotation = "hauberk.dev/formats"

// Validate refuses formats that do not exist; besides is a command's own.
func (o *Output) Validate(besides ...string) error {
	formats := append([]string{"table", "wide", "json", "yaml"}, besides...)
	if !slices.Contains(formats, o.Format) {
		last := len(formats) - 1
		return Fail(ExitUsage, "use "+strings.Join(formats[:last], ", ")+" or "+formats[last], "unknown output format %q", o.Format)
	}
	switch o.Color {
	case "auto", "always", "never":
		return nil
	}
	return Fail(ExitUsage, "use auto, always or never", "unknown --color %q", o.Color)
}

// Structured reports whether results are wanted as JSON or YAML, and prints v so
// if they are.
func (o *Output) Structured(v any) (bool, error) {
	var data []byte
	var err error
	switch o.Format {
	case "json":
		data, err = json.MarshalIndent(v, "", "  ")
		data = append(data, '\n')
	case "yaml":
		data, err = yaml.Marshal(v)
	default:
		return false, nil
	}
	if err == nil {
		_, err = o.Out.Write(data)
	}
	return true, err
}

// Table prints rows under a header, in columns.
func (o *Output) Table(header []string, rows [][]string) error {
	w := tabwriter.NewWriter(o.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// IsTerminal reports whether w is one.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Paint colours text for w when colour is wanted there.
func (o *Output) Paint(w io.Writer, c Colour, text string) string {
	on := o.Color == "always" || o.Color != "never" && os.Getenv("NO_COLOR") == "" && IsTerminal(w)
	if !on || text == "" {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, text)
}

// Colour is an SGR code (ECMA-48).
type Colour int

// The colours of the command's output.
const (
	Bold   Colour = 1
	Dim    Colour = 2
	Red    Colour = 31
	Green  Colour = 32
	Yellow Colour = 33
)

// Good, Bad and Warn are the marks of a check.
func (o *Output) Good() string { return o.Paint(o.Out, Green, "✓") }

// Bad is the mark of a failure.
func (o *Output) Bad() string { return o.Paint(o.Out, Red, "✗") }

// Warn is the mark of what deserves a look.
func (o *Output) Warn() string { return o.Paint(o.Out, Yellow, "!") }

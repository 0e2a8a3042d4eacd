package selector

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	tests := []struct {
		text string
		want string // as it is written
		yes  string // labels that match, k=v, separated by blanks
		no   string
	}{
		{"", "all()", "a=1", ""},
		{"all()", "all()", "-", ""},
		{"!all()", "!(all())", "", "a=1"},
		{"a=='x'", `a == "x"`, "a=x", "a=y"},
		{`a != "x"`, `!(a == "x")`, "-", "a=x"},
		{"a in {'x','y',}", `a in {"x", "y"}`, "a=y", "a=z"},
		{"a in {}", "a in {}", "", "a=z"},
		{"a not  in { 'x' , \"y\"}", `!(a in {"x", "y"})`, "-", "a=y"},
		{"has(k8s.io/app-1_a)", "has(k8s.io/app-1_a)", "k8s.io/app-1_a=", "-"},
		{"! has( a )", "!(has(a))", "-", "a=1"},
		{"a contains 'b'", `a contains "b"`, "a=abc", "-"},
		{"a starts with 'b'", `a starts with "b"`, "a=bc", "a=ab"},
		{"a ends with 'b'", `a ends with "b"`, "a=ab", "a=bc"},
		{"a == '\"'", `a == '"'`, `a="`, "a="},
		{"a == 'x' || b == 'x' && c == 'x'", `a == "x" || (b == "x" && c == "x")`, "a=x", "b=x"},
		{"(a == 'x' || b == 'x') && c == 'x'", `(a == "x" || b == "x") && c == "x"`, "a=x c=x", "a=x"},
		{"!a == 'x' && !(b == 'x')", `!(a == "x") && !(b == "x")`, "-", "b=x"},
		{"has == 'x'", `has == "x"`, "has=x", "-"},
	}
	for _, tt := range tests {
		e, err := Parse(tt.text)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if got := e.String(); got != tt.want {
			t.Errorf("%q is written %q, want %q", tt.text, got, tt.want)
		}
		for labels, want := range map[string]bool{tt.yes: true, tt.no: false} {
			if labels == "" {
				continue
			}
			m := map[string]string{}
			for pair := range strings.FieldsSeq(strings.Trim(labels, "-")) {
				k, v, _ := strings.Cut(pair, "=")
				m[k] = v
			}
			if got := e.Matches(m, true); got != want {
				t.Errorf("%q of %q is %t", tt.text, labels, got)
			}
		}
	}
}

func TestParseTellsWhere(t *testing.T) {
	for text, want := range map[string]string{
		"a":                           "column 2: expected ==, !=, in, not in, contains, starts with or ends with, found the end",
		"a == x":                      `column 6: expected a value in quotes, found "x"`,
		"a == 'x":                     "column 6: the text that begins with ' has no end",
		"(a == 'x'":                   "column 10: expected ), found the end",
		"a == 'x' b":                  `column 10: expected &&, || or the end, found "b"`,
		"some(a)":                     `column 6: there is no function "some": use has(), all() or global()`,
		"a ~ 'x'":                     "column 3: unexpected '~'",
		"a in {'x' 'y'}":              `column 11: expected } or a value in quotes, found "y"`,
		strings.Repeat("!", 150) + "": "column 102: it nests more than 100 deep",
	} {
		if _, err := Parse(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestTerms(t *testing.T) {
	for text, want := range map[string][]string{
		"all()":                              {""},
		"!all()":                             nil,
		"a == 'x' || a == 'y'":               {`a in {"x", "y"}`},
		"!(a == 'x' && has(b))":              {`a != "x"`, "!has(b)"},
		"(a=='1'||b=='2')&&(c=='3'||has(d))": {`a == "1" & c == "3"`, `a == "1" & has(d)`, `b == "2" & c == "3"`, `b == "2" & has(d)`},
		"!global() && a not in {'x','y'}":    {`!global() & a not in {"x", "y"}`},
	} {
		e, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		terms, err := e.Terms(10)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, term := range terms {
			var parts []string
			for i := range term {
				parts = append(parts, term[i].String())
			}
			got = append(got, strings.Join(parts, " & "))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q:\n%s", text, diff)
		}
	}
	var wide []string
	for i := range 8 {
		wide = append(wide, fmt.Sprintf("(a%d == 'x' || has(b%d))", i, i))
	}
	e, err := Parse(strings.Join(wide, " && "))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Terms(100); err == nil {
		t.Error("256 terms fit into 100")
	}
}

// FuzzParse: what is read is written so that it is read the same, and its terms
// mean what it means.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"", "a == 'x'", "!(a in {'x','y'} || has(b)) && global()", "a starts with 'x' && !all()", "a not in {} || a ends with \"\"", "!!a contains 'b'"} {
		f.Add(text)
	}
	worlds := []map[string]string{nil, {"a": "x"}, {"a": "y", "b": "x"}, {"b": ""}, {"a": "", "c": "xy"}}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(e.String())
		if err != nil {
			t.Fatalf("%q is written %q: %v", text, e, err)
		}
		if again.String() != e.String() {
			t.Fatalf("%q is written %q, then %q", text, e, again)
		}
		terms, err := e.Terms(50)
		if err != nil {
			return
		}
		for _, labels := range worlds {
			for _, inNamespace := range []bool{false, true} {
				want := e.Matches(labels, inNamespace)
				got := false
				for _, term := range terms {
					all := true
					for i := range term {
						all = all && term[i].Matches(labels, inNamespace)
					}
					got = got || all
				}
				if got != want || again.Matches(labels, inNamespace) != want {
					t.Fatalf("%q on %v in a namespace %t: %t, by terms %t", text, labels, inNamespace, want, got)
				}
			}
		}
	})
}

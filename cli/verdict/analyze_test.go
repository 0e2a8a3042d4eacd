package verdict

import (
	"os"
	"strconv"
	"testing"
)

// The documentation's examples mean what they say, so nothing is found in them
// but what they are about.
func TestExamplesHaveNoFindings(t *testing.T) {
	for line, text := range documented(t) {
		t.Run("line "+strconv.Itoa(line), func(t *testing.T) {
			w := bankWith(t, text)
			for _, f := range w.analyze().Findings {
				t.Errorf("%s [%s, %s]: %s", f.Object+" "+f.Where, f.Severity, f.Code, f.What)
			}
		})
	}
}

// The faulty manifests have a finding of every code, and no code is without
// explanation in help.
func TestEveryCodeIsFound(t *testing.T) {
	text, err := os.ReadFile("../testdata/policy/faulty.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range bankWith(t, string(text)).analyze().Findings {
		found[f.Code] = true
	}
	for _, c := range codes {
		if !found[c.code] {
			t.Errorf("%s is not found", c.code)
		}
		delete(found, c.code)
	}
	for code := range found {
		t.Errorf("%s is not explained", code)
	}
}

package verdict

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/flow"
)

// What is suggested allows every recorded flow that was allowed, and nothing
// else to those whom it selects.
func TestSuggestionsAreLeast(t *testing.T) {
	env := &run.Env{In: strings.NewReader("")}
	records, err := readRecords(env, []string{"../testdata/policy/flows.jsonl"})
	if err != nil {
		t.Fatal(err)
	}
	w := bankWith(t, "")
	var allowed []flow.Record
	for _, r := range records {
		if r.Verdict == flow.Allow {
			allowed = append(allowed, r)
		}
	}
	questions, unknown := w.questions(allowed)
	if len(unknown) != 1 {
		t.Errorf("unknown ends: %v, want one", unknown)
	}
	suggested, bare := w.suggest(questions, true)
	if len(suggested) != 2 || len(bare) > 0 {
		t.Fatalf("got %d policies, bare %v; want 2 and none", len(suggested), bare)
	}
	var text strings.Builder
	for _, s := range suggested {
		data, err := yaml.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("---\n" + string(data))
	}
	after := bankWith(t, text.String())
	if s := after.simulate(allowed); len(s.Changes) > 0 {
		t.Errorf("recorded flows are denied: %+v", s.Changes)
	}
	for _, f := range after.analyze().Findings {
		t.Errorf("%+v", f)
	}
	// Everything else to them closes: other peers, ports, methods and paths.
	for _, other := range []struct{ from, to, port, method, path string }{
		{"bank/legacy", "bank/database", "2379", "", ""},
		{"bank/summary", "bank/database", "2379", "", ""},
		{"bank/summary", "bank/database", "2380", "GET", "/v2/keys/a"},
		{"bank/summary", "bank/database", "2379", "DELETE", "/v2/keys/a"},
		{"bank/summary", "bank/database", "2379", "GET", "/v2/keys/b"},
		{"bank/summary", "bank/database", "2379", "GET", "/v2/accounts/7"},
		{"shop/database", "bank/summary", "8080", "", ""},
		{"203.0.113.8", "bank/summary", "8080", "", ""},
	} {
		c := &testCase{Port: scalar(other.port)}
		if other.method != "" {
			c.Request = &testRequest{Method: other.method, Path: other.path}
		}
		a, err := after.ask("bank", other.from, other.to, c)
		if err != nil {
			t.Fatal(err)
		}
		if a.Allowed {
			t.Errorf("%+v is allowed", other)
		}
	}
	a, err := after.ask("bank", "summary", "database", &testCase{Port: "2379", Request: &testRequest{Method: "PUT", Path: "/v2/accounts/7"}})
	if err != nil || !a.Allowed {
		t.Errorf("another account is denied: %v, %v", a, err)
	}
}

func TestGeneralPath(t *testing.T) {
	for path, want := range map[string]string{
		"/": "/", "/v2/keys": "/v2/keys", "/users/7": "/users/{id}", "/users/7/": "/users/{id}/",
		"/o/2f1f6a0e-4b7d-4c0f-9c33-5b1e6f2d8a11": "/o/{id}", "/face": "/face", "/v2": "/v2", "/{x}/7": "/{x}/7", "*": "*",
	} {
		if got := generalPath(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

package verdict

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/version"
)

// write prints the findings in the format that is asked for.
func (a *Analysis) write(env *run.Env) error {
	if env.Format == "sarif" {
		return a.sarif(env.Out)
	}
	if done, err := env.Structured(a); done {
		return err
	}
	counts := map[string]int{}
	for _, f := range a.Findings {
		counts[f.Severity]++
		mark := env.Warn()
		if f.Severity == severe {
			mark = env.Bad()
		}
		where := f.Object
		if f.Where != "" {
			where += ", rule " + f.Where
		}
		fmt.Fprintf(env.Out, "%s %s: %s [%s, %s]\n  %s\n", mark, where, f.What, f.Severity, f.Code, f.Mend)
	}
	if len(a.Findings) == 0 {
		_, err := fmt.Fprintf(env.Out, "%s %d policies, nothing found\n", env.Good(), a.Policies)
		return err
	}
	var parts []string
	for _, s := range severities {
		parts = append(parts, fmt.Sprintf("%d %s", counts[s], s))
	}
	_, err := fmt.Fprintf(env.Out, "\n%d policies: %s\n", a.Policies, strings.Join(parts, ", "))
	return err
}

// sarif writes what code hosts read (SARIF 2.1.0). Findings are of objects, not
// of lines, so their locations are logical.
func (a *Analysis) sarif(w io.Writer) error {
	type object = map[string]any
	levels := map[string]string{severe: "error", warning: "warning", hint: "note"}
	rules, results := []object{}, []object{}
	for _, c := range codes {
		rules = append(rules, object{"id": c.code, "shortDescription": object{"text": c.about}})
	}
	for _, f := range a.Findings {
		name := f.Object
		if f.Where != "" {
			name += ", rule " + f.Where
		}
		results = append(results, object{
			"ruleId": f.Code, "level": levels[f.Severity],
			"message":   object{"text": f.What + ". To mend it: " + f.Mend + "."},
			"locations": []object{{"logicalLocations": []object{{"fullyQualifiedName": name, "kind": "object"}}}},
		})
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(object{
		"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
		"runs": []object{{"tool": object{"driver": object{"name": "hauberk analyze", "version": version.Version, "rules": rules}}, "results": results}},
	})
}

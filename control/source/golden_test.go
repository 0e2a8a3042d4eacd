package source

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/wire"
)

var update = flag.Bool("update", false, "write the expected output anew")

// Objects in, resources out: the diff of the output files is what a reviewer
// reads. A first line "# destinations: a:p b:p" names destinations to look up.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no input files: %v", err)
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(input)
			if err != nil {
				t.Fatal(err)
			}
			objects := &Objects{TrustDomain: "cluster.local"}
			ignored, err := objects.Add(strings.NewReader(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			if len(ignored) > 0 {
				t.Errorf("documents of kinds that are not read: %v", ignored)
			}
			facts := FactsFrom(objects)
			resources := compile.Compile(facts)
			for id, set := range resources.PolicySets {
				if err := set.Set.Validate(); err != nil {
					t.Errorf("set %s is not valid: %v", id, err)
				}
				back, err := wire.PolicySetFromProto(set.Proto)
				if err != nil {
					t.Errorf("a client refuses set %s: %v", id, err)
				} else if back.Digest() != id {
					t.Errorf("set %s arrives as %s", id, back.Digest())
				}
			}
			got := render(t, facts, resources, destinationsOf(string(text)))
			golden := filepath.Join("testdata", name+".out.yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("output differs (-want +got; -update writes it anew):\n%s", diff)
			}
			// The order of objects must not matter.
			reversed := facts
			reversed.Pods = slices.Clone(facts.Pods)
			slices.Reverse(reversed.Pods)
			reversed.Policies = slices.Clone(facts.Policies)
			slices.Reverse(reversed.Policies)
			reversed.EndpointSlices = slices.Clone(facts.EndpointSlices)
			slices.Reverse(reversed.EndpointSlices)
			again := render(t, reversed, compile.Compile(reversed), destinationsOf(string(text)))
			if diff := cmp.Diff(string(got), string(again)); diff != "" {
				t.Errorf("the order of objects matters:\n%s", diff)
			}
		})
	}
}

func destinationsOf(text string) []string {
	first, _, _ := strings.Cut(text, "\n")
	names, ok := strings.CutPrefix(first, "# destinations: ")
	if !ok {
		return nil
	}
	return strings.Fields(names)
}

func render(t *testing.T, facts compile.Facts, r *compile.Resources, destinations []string) []byte {
	t.Helper()
	one := func(m proto.Message) any {
		data, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	page := map[string]any{"mesh": one(r.Mesh)}
	workloads, tunnels, found := map[string]any{}, map[string]any{}, map[string]any{}
	// Lists, because YAML's natural order of keys is none for digests.
	var peers, sets []any
	for k, v := range r.Workloads {
		workloads[k] = one(v)
	}
	for _, k := range slices.Sorted(maps.Keys(r.PeerSets)) {
		peers = append(peers, one(r.PeerSets[k]))
	}
	for k, v := range r.TunnelPeers {
		tunnels[k] = one(v)
	}
	for _, k := range slices.Sorted(maps.Keys(r.PolicySets)) {
		sets = append(sets, one(r.PolicySets[k].Proto))
	}
	for _, name := range destinations {
		found[name] = "unknown"
		if d, ok := r.Destination(name); ok {
			found[name] = one(d)
		}
	}
	reports := []any{}
	for _, report := range slices.Concat(r.Policies, r.PeerAuthentications, r.Others) {
		reports = append(reports, map[string]any{
			"ref": report.Ref.String(), "subjects": report.Subjects, "invalid": report.Invalid, "unresolved": report.Unresolved, "l7": report.L7,
		})
	}
	for name, section := range map[string]map[string]any{
		"workloads": workloads, "tunnelPeers": tunnels, "destinations": found,
	} {
		if len(section) > 0 {
			page[name] = section
		}
	}
	for name, section := range map[string][]any{"peerSets": peers, "policySets": sets} {
		if len(section) > 0 {
			page[name] = section
		}
	}
	if len(reports) > 0 {
		page["reports"] = reports
	}
	if len(facts.Problems) > 0 {
		page["problems"] = facts.Problems
	}
	data, err := yaml.Marshal(page)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

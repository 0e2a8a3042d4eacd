package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/mattfenwick/cyclonus/pkg/connectivity"
	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"
	"github.com/mattfenwick/cyclonus/pkg/generator"
	"github.com/mattfenwick/cyclonus/pkg/kube"
	"github.com/mattfenwick/cyclonus/pkg/matcher"
	networkingv1 "k8s.io/api/networking/v1"
)

// step is what a cluster holds at one step of a case, and what cyclonus expects
// of it. packet-level tests replay it without a cluster.
type step struct {
	Case        int
	Step        int
	Description string
	Namespaces  map[string]map[string]string // labels
	Pods        []pod
	Policies    []*networkingv1.NetworkPolicy
	// Allowed and Denied are connections: "x/a y/b TCP 80".
	Allowed, Denied []string
}

type pod struct {
	Namespace, Name, IP string
	Labels              map[string]string
}

// record writes a JSON line for each step of each case. Nothing is run: a
// cluster in memory holds the objects.
func record(w io.Writer) error {
	encoder := json.NewEncoder(w)
	client := kube.NewMockKubernetes(1)
	resources, err := probe.NewDefaultResources(client, namespaces, pods, ports, protocols, nil, 1, true, "")
	if err != nil {
		return err
	}
	one, err := resources.GetPod("z", "c")
	if err != nil {
		return err
	}
	for i, c := range generator.NewTestCaseGenerator(true, one.IP, namespaces, nil, nil).GenerateTestCases() {
		state := &connectivity.TestCaseState{Kubernetes: client, Resources: resources}
		if err := state.ResetClusterState(); err != nil {
			return fmt.Errorf("case %d: %w", i+1, err)
		}
		for j, s := range c.Steps {
			for _, a := range s.Actions {
				if err := perform(state, a); err != nil {
					return fmt.Errorf("case %d, step %d: %w", i+1, j+1, err)
				}
			}
			line := step{Case: i + 1, Step: j + 1, Description: c.Description, Namespaces: state.Resources.Namespaces, Policies: state.Policies}
			for _, p := range state.Resources.Pods {
				line.Pods = append(line.Pods, pod{p.Namespace, p.Name, p.IP, p.Labels})
			}
			runner := probe.NewSimulatedRunner(matcher.BuildNetworkPolicies(true, state.Policies), &probe.JobBuilder{})
			table := runner.RunProbeForConfig(s.Probe, state.Resources)
			for _, key := range table.Wrapped.Keys() {
				results := table.Get(key.From, key.To).JobResults
				for _, name := range slices.Sorted(maps.Keys(results)) {
					r := results[name]
					text := fmt.Sprintf("%s %s %s %d", key.From, key.To, r.Job.Protocol, r.Job.ResolvedPort)
					switch r.Combined {
					case probe.ConnectivityAllowed:
						line.Allowed = append(line.Allowed, text)
					case probe.ConnectivityBlocked:
						line.Denied = append(line.Denied, text)
					}
				}
			}
			if err := encoder.Encode(line); err != nil {
				return err
			}
		}
	}
	return nil
}

func perform(state *connectivity.TestCaseState, a *generator.Action) error {
	switch {
	case a.CreatePolicy != nil:
		return state.CreatePolicy(a.CreatePolicy.Policy)
	case a.UpdatePolicy != nil:
		return state.UpdatePolicy(a.UpdatePolicy.Policy)
	case a.DeletePolicy != nil:
		return state.DeletePolicy(a.DeletePolicy.Namespace, a.DeletePolicy.Name)
	case a.CreateNamespace != nil:
		return state.CreateNamespace(a.CreateNamespace.Namespace, a.CreateNamespace.Labels)
	case a.SetNamespaceLabels != nil:
		return state.SetNamespaceLabels(a.SetNamespaceLabels.Namespace, a.SetNamespaceLabels.Labels)
	case a.DeleteNamespace != nil:
		return state.DeleteNamespace(a.DeleteNamespace.Namespace)
	case a.ReadNetworkPolicies != nil:
		return state.ReadPolicies(a.ReadNetworkPolicies.Namespaces)
	case a.CreatePod != nil:
		return state.CreatePod(a.CreatePod.Namespace, a.CreatePod.Pod, a.CreatePod.Labels)
	case a.SetPodLabels != nil:
		return state.SetPodLabels(a.SetPodLabels.Namespace, a.SetPodLabels.Pod, a.SetPodLabels.Labels)
	case a.DeletePod != nil:
		return state.DeletePod(a.DeletePod.Namespace, a.DeletePod.Pod)
	}
	return fmt.Errorf("action %+v is not known", a)
}

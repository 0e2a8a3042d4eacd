package agent

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"os/exec"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/internal/version"
	"github.com/hauberk-mesh/hauberk/node/chain"
	"github.com/hauberk-mesh/hauberk/node/redirect"
)

// Status is /status: the node at one glance.
type Status struct {
	Node     string        `json:"node"`
	Version  string        `json:"version"`
	Ready    bool          `json:"ready"`
	NotReady []string      `json:"notReady,omitempty"`
	Control  controlStatus `json:"control"`
	Chain    chain.State   `json:"chain"`
	Pods     struct {
		Known    int `json:"known"`
		Attached int `json:"attached"`
		Meshed   int `json:"meshed"`
		// Unprotected names pods with a sidecar that nothing redirects to it.
		Unprotected []string `json:"unprotected"`
	} `json:"pods"`
	Tunnel any         `json:"tunnel"`
	Flows  FlowsStatus `json:"flows"`
}

// PodStatus is one pod of /pods.
type PodStatus struct {
	Namespace     string          `json:"namespace"`
	Name          string          `json:"name"`
	UID           string          `json:"uid"`
	Addresses     []netip.Addr    `json:"addresses"`
	Known         bool            `json:"known"`
	Meshed        bool            `json:"meshed"`
	PolicySet     string          `json:"policySet,omitempty"`
	Programmed    bool            `json:"programmed"`
	Attached      bool            `json:"attached"`
	ContainerID   string          `json:"containerID,omitempty"`
	HostInterface string          `json:"hostInterface,omitempty"`
	Redirect      *redirect.Rules `json:"redirect,omitempty"`
	Bootstrap     bool            `json:"bootstrap,omitempty"`
}

func (a *Agent) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.status()) })
	mux.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.pods()) })
	mux.HandleFunc("GET /tunnels", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.tunnel.Status()) })
	mux.HandleFunc("GET /rules", a.rules)
	mux.Handle("GET /flows", flow.Handler(a.ring, a.flowsProblem))
	lifecycle.HandlePprof(mux)
	return mux
}

func (a *Agent) status() Status {
	known, _ := a.know.snapshot()
	s := Status{Node: a.NodeName, Version: version.String(), NotReady: a.health.NotReady(), Control: a.control.status(), Chain: a.chain.State(), Tunnel: a.tunnel.Status()}
	s.Ready = len(s.NotReady) == 0
	s.Pods.Known, s.Pods.Unprotected = len(known.workloads), a.unprotected(known)
	for _, w := range known.workloads {
		if w.GetMeshed() {
			s.Pods.Meshed++
		}
	}
	s.Flows = FlowsStatus{Told: a.ring.Added(), Lost: a.flows.Lost(), Problem: a.flowsProblem()}
	s.Pods.Attached = len(a.attachments.List())
	return s
}

func (a *Agent) pods() []PodStatus {
	known, _ := a.know.snapshot()
	programmed := a.enforcer.programmed()
	pods := []PodStatus{}
	seen := map[string]bool{}
	for _, at := range a.attachments.List() {
		seen[at.UID] = true
		p := PodStatus{
			Namespace: at.Namespace, Name: at.Name, UID: at.UID, Addresses: at.Addresses, Attached: true,
			ContainerID: at.ContainerID, HostInterface: at.HostInterface, Redirect: at.Redirect, Bootstrap: at.Bootstrap,
		}
		if w, ok := known.workloads[at.UID]; ok {
			p.Known, p.Meshed, p.PolicySet = true, w.GetMeshed(), w.GetPolicySet()
		}
		p.Programmed = p.PolicySet != "" && programmed[at.UID] == p.PolicySet
		pods = append(pods, p)
	}
	for _, uid := range sortedKeys(known.workloads) {
		if w := known.workloads[uid]; !seen[uid] && !w.GetHostNetwork() {
			pods = append(pods, PodStatus{
				Namespace: w.GetNamespace(), Name: w.GetName(), UID: uid, Addresses: w.addresses, Known: true, Meshed: w.GetMeshed(),
				PolicySet: w.GetPolicySet(), Programmed: programmed[uid] == w.GetPolicySet(),
			})
		}
	}
	return pods
}

// rules is the kernel's own words of our tables.
func (a *Agent) rules(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	for _, table := range []string{names.PolicyTable, names.TunnelTable} {
		output, err := exec.CommandContext(r.Context(), "nft", "list", "table", "inet", table).CombinedOutput()
		if err != nil {
			// A table that is not there yet is an answer, too.
			output = append([]byte("# table inet "+table+": "), output...)
		}
		if _, err := w.Write(output); err != nil {
			return
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	// The header is out: an error now is the connection's.
	_ = e.Encode(v)
}

package server

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/control/distribute"
	"github.com/hauberk-mesh/hauberk/internal/lifecycle"
)

// adminPages are for whoever may enter the pod: they are served on loopback.
func adminPages(discovery *distribute.Server, latest *atomic.Pointer[compile.Resources]) http.Handler {
	mux := http.NewServeMux()
	lifecycle.HandlePprof(mux)
	mux.HandleFunc("GET /debug/clients", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, discovery.Clients())
	})
	mux.HandleFunc("GET /debug/snapshot", func(w http.ResponseWriter, _ *http.Request) {
		resources := latest.Load()
		if resources == nil {
			http.Error(w, "nothing is compiled yet", http.StatusServiceUnavailable)
			return
		}
		page, err := snapshotPage(resources)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, page)
	})
	mux.HandleFunc("GET /debug/destination/{name}", func(w http.ResponseWriter, r *http.Request) {
		resources := latest.Load()
		if resources == nil {
			http.Error(w, "nothing is compiled yet", http.StatusServiceUnavailable)
			return
		}
		d, ok := resources.Destination(r.PathValue("name"))
		if !ok {
			http.Error(w, "no such destination: name it <address>:<port>", http.StatusNotFound)
			return
		}
		data, err := protojson.Marshal(d)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		writeJSON(w, json.RawMessage(data))
	})
	return mux
}

func writeJSON(w http.ResponseWriter, page any) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(page); err != nil {
		// The reader has gone; there is nobody to tell.
		return
	}
}

// snapshotPage is all compiled resources.
func snapshotPage(r *compile.Resources) (map[string]any, error) {
	page := map[string]any{"policies": r.Policies, "peerAuthentications": r.PeerAuthentications}
	var firstErr error
	one := func(m proto.Message) json.RawMessage {
		data, err := protojson.Marshal(m)
		if err != nil && firstErr == nil {
			firstErr = fmt.Errorf("print %T: %w", m, err)
		}
		return data
	}
	page["mesh"] = one(r.Mesh)
	page["workloads"] = printed(r.Workloads, one)
	page["peerSets"] = printed(r.PeerSets, one)
	page["tunnelPeers"] = printed(r.TunnelPeers, one)
	sets := make(map[string]json.RawMessage, len(r.PolicySets))
	for _, id := range slices.Sorted(maps.Keys(r.PolicySets)) {
		sets[id] = one(r.PolicySets[id].Proto)
	}
	page["policySets"] = sets
	return page, firstErr
}

func printed[M proto.Message](messages map[string]M, one func(proto.Message) json.RawMessage) map[string]json.RawMessage {
	page := make(map[string]json.RawMessage, len(messages))
	for name, m := range messages {
		page[name] = one(m)
	}
	return page
}

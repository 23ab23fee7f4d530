// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/singleflight"
)

// A hundred clients miss a cache at once, and the backend gets one request instead of a
// hundred. fn checks the cache again, as another call may have filled it. It sets a
// timeout, as its context has no deadline. It recovers from its panics, as one would
// crash the process if all clients had left.
func Example_handler() {
	var pages singleflight.GroupOf[string]
	var cache sync.Map // from path to page; a real cache has limits
	fetch := func(_ context.Context, path string) (string, error) {
		fmt.Println("request:", path)
		return "the news", nil
	}

	get := func(ctx context.Context, path string) (string, error) {
		if page, ok := cache.Load(path); ok {
			return page.(string), nil
		}
		load := func(ctx context.Context) (_ string, err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
				}
			}()
			if page, ok := cache.Load(path); ok {
				return page.(string), nil
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			page, err := fetch(ctx, path)
			if err == nil {
				cache.Store(path, page)
			}
			return page, err
		}
		return pages.DoContext(ctx, path, load)
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		page, err := get(r.Context(), r.URL.Path)
		if err != nil {
			http.Error(w, "cannot get the page", http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, page)
	}

	var clients sync.WaitGroup
	for range 100 {
		r := httptest.NewRequest(http.MethodGet, "/news", nil)
		clients.Go(func() { handler(httptest.NewRecorder(), r) })
	}
	clients.Wait()
	// Output: request: /news
}

// Joined by + alone, the keys of these two callers would be the same, and one tenant
// would get the file of the other. Quoting keeps the parts of a key apart. Strings are
// quoted with %q. Integers take %d, as many of them look the same under %q.
func Example_compoundKey() {
	key := func(tenant, file string, revision int) string {
		return fmt.Sprintf("%q %q %d", tenant, file, revision)
	}

	fmt.Println(key("acme", "2/plan", 7))
	fmt.Println(key("acme2", "/plan", 7))
	// Output:
	// "acme" "2/plan" 7
	// "acme2" "/plan" 7
}

// Outside a synctest bubble, a test cannot know when callers have joined a call. In a
// bubble, synctest.Wait returns once all callers and fn are blocked.
func Example_testing() {
	testJoin := func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var users singleflight.GroupOf[string]
			loads, answer := 0, make(chan string)
			load := func() (string, error) { loads++; return <-answer, nil }
			for range 10 {
				go users.Do("42", load)
			}
			synctest.Wait() // until all callers have joined
			answer <- "Ann"
			synctest.Wait() // until all callers have returned
			if loads != 1 {
				t.Error("loads:", loads)
			}
			fmt.Println("loads:", loads)
		})
	}

	testJoin(new(testing.T)) // a test passes its own t
	// Output: loads: 1
}

// A service that waits only for its callers can shut down while fns are still running,
// since fns can outlive their callers. So each fn counts itself, unless the service is
// closed. One mutex guards both, so that no fn begins once stop waits.
func Example_shutdown() {
	var group singleflight.GroupOf[bool]
	var mu sync.Mutex
	var closed bool
	var running sync.WaitGroup
	work := func(ctx context.Context, task func()) error {
		fn := func(context.Context) (bool, error) {
			mu.Lock()
			if closed {
				mu.Unlock()
				return false, errors.New("closed")
			}
			running.Add(1)
			mu.Unlock()
			defer running.Done()
			task()
			return true, nil
		}
		_, err := group.DoContext(ctx, "key", fn)
		return err
	}
	stop := func() {
		mu.Lock()
		closed = true
		mu.Unlock()
		running.Wait()
	}

	ctx, hangUp := context.WithCancel(context.Background())
	proceed := make(chan bool)
	fmt.Println(work(ctx, func() { hangUp(); <-proceed; fmt.Println("done") }))
	close(proceed)
	stop()
	fmt.Println(work(context.Background(), nil))
	// Output:
	// context canceled
	// done
	// closed
}

// The callers of a call get the same slice, so sorting it changes it for all. A
// caller that changes a value clones it first. For maps, use maps.Clone.
func Example_clone() {
	var group singleflight.GroupOf[[]string]
	joined := make(chan struct{})
	load := func() ([]string, error) {
		<-joined
		return []string{"sync", "go", "cache"}, nil
	}

	one, other := group.DoChan("tags", load), group.DoChan("tags", load)
	close(joined)
	tags := slices.Clone((<-one).Val)
	slices.Sort(tags)
	fmt.Println("sorted:", tags)
	fmt.Println("other caller:", (<-other).Val)
	// Output:
	// sorted: [cache go sync]
	// other caller: [sync go cache]
}

// A caller can miss the cache and ask only after the call that fills it has ended. So
// fn checks the cache again, and does not load the value a second time.
func ExampleGroupOf_Do() {
	var group singleflight.GroupOf[string]
	var cache sync.Map // from id to name
	fill := func(id string) (string, error) {
		return group.Do(id, func() (string, error) {
			if name, ok := cache.Load(id); ok {
				return name.(string), nil
			}
			fmt.Println("load", id)
			cache.Store(id, "Ann")
			return "Ann", nil
		})
	}

	_, ok := cache.Load("42")
	fill("42") // another caller comes and goes in the gap
	if !ok {
		fmt.Println(fill("42"))
	}
	// Output:
	// load 42
	// Ann <nil>
}

// The work must go on when its caller stops waiting. So fn makes a context of its own,
// with the values of the caller's and a timeout. A real fn also recovers from its
// panics, as in the handler above, since one would crash the process.
func ExampleGroupOf_DoChan() {
	var group singleflight.GroupOf[string]
	answer, stored := make(chan string), make(chan string)
	load := func(context.Context) (string, error) {
		report := <-answer // takes long
		stored <- report
		return report, nil
	}
	report := func(ctx context.Context) (string, error) {
		results := group.DoChan("report", func() (string, error) {
			ctx := context.WithoutCancel(ctx)
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return load(ctx)
		})
		select {
		case r := <-results:
			return r.Val, r.Err
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}

	ctx, hangUp := context.WithCancel(context.Background())
	hangUp()
	_, err := report(ctx)
	fmt.Println("caller:", err)
	answer <- "the report"
	fmt.Println("stored:", <-stored)
	// Output:
	// caller: context canceled
	// stored: the report
}

// A forgotten fn still runs, and would store a value that is out of date. So fn stores
// nothing if the revision has changed since it began.
func ExampleGroupOf_Forget() {
	var group singleflight.GroupOf[int]
	var mu sync.Mutex // guards cache and revision
	cache, revision := make(map[string]int), 0
	get := func(key string, load func() (int, error)) (int, error) {
		return group.Do(key, func() (int, error) {
			mu.Lock()
			v, ok := cache[key]
			before := revision
			mu.Unlock()
			if ok {
				return v, nil
			}
			v, err := load()
			mu.Lock()
			defer mu.Unlock()
			if err == nil && revision == before {
				cache[key] = v
			}
			return v, err
		})
	}
	invalidate := func(key string) {
		mu.Lock()
		defer mu.Unlock()
		revision++
		delete(cache, key)
		group.Forget(key)
	}

	newPrice := func() (int, error) { return 12, nil }
	oldPrice := func() (int, error) {
		invalidate("price") // the price changes while fn reads it
		fmt.Println(get("price", newPrice))
		return 10, nil
	}
	get("price", oldPrice)
	fmt.Println(get("price", newPrice))
	// Output:
	// 12 <nil>
	// 12 <nil>
}

// Nothing ends this fn when it is stuck, as it has no context. A timer forgets the
// key, and the next caller starts a new call. If the timer fires when fn has just
// ended, it can forget the next call instead, and then one more call starts.
func ExampleGroupOf_Forget_timer() {
	var group singleflight.GroupOf[string]
	forgotten := make(chan bool, 1)
	report := func(read func() string) <-chan singleflight.ResultOf[string] {
		return group.DoChan("report", func() (string, error) {
			timer := time.AfterFunc(time.Millisecond, func() {
				group.Forget("report")
				forgotten <- true
			})
			defer timer.Stop()
			return read(), nil
		})
	}

	answer := make(chan string)
	stuck := report(func() string { return <-answer })
	<-forgotten
	next := report(func() string { return "the report" })
	fmt.Println("next caller:", (<-next).Val)
	answer <- "a late report"
	<-stuck
	// Output: next caller: the report
}

// A caller that must see its own write can join a call that read before. So fn
// forgets its key before it reads: no caller joins after that. The lock lets one fn of
// the key read at a time, so that the callers that come meanwhile share the next call.
func ExampleGroupOf_Forget_ownWrite() {
	var group singleflight.GroupOf[int64]
	var mu sync.Mutex // of the key "balance"
	balance := func(read func() int64) <-chan singleflight.ResultOf[int64] {
		return group.DoChan("balance", func() (int64, error) {
			mu.Lock()
			defer mu.Unlock()
			group.Forget("balance")
			return read(), nil
		})
	}

	var stored atomic.Int64
	var own <-chan singleflight.ResultOf[int64]
	early := balance(func() int64 {
		v := stored.Load()
		stored.Store(12) // another caller writes, and asks
		own = balance(stored.Load)
		return v
	})
	fmt.Println("early caller:", (<-early).Val)
	fmt.Println("caller that wrote:", (<-own).Val)
	// Output:
	// early caller: 0
	// caller that wrote: 12
}

// Forget by a caller that gives up would also forget a joined call, and the next caller
// would repeat work that is under way. ForgetUnshared leaves a joined call alone.
func ExampleGroupOf_ForgetUnshared() {
	var group singleflight.GroupOf[string]
	answer := make(chan string)
	load := func() (string, error) { return <-answer, nil }
	group.DoChan("go.example", load)
	fmt.Println("forgotten:", group.ForgetUnshared("go.example"))
	group.DoChan("go.example", load)
	group.DoChan("go.example", load)
	fmt.Println("forgotten:", group.ForgetUnshared("go.example"))
	close(answer)
	// Output:
	// forgotten: true
	// forgotten: false
}

// Shared is true for every caller of a joined call, also for the one that started it.
// To learn which caller did the work, each sets a flag in its own fn. The flag is
// atomic, as fn may still run when its caller has left.
func ExampleResult() {
	var group singleflight.Group
	joined := make(chan bool)
	get := func(worked *atomic.Bool) <-chan singleflight.Result {
		return group.DoChan("page", func() (any, error) {
			worked.Store(true)
			<-joined
			return "the page", nil
		})
	}

	var first, second atomic.Bool
	one, other := get(&first), get(&second)
	close(joined)
	fmt.Println("starter: shared", (<-one).Shared, "worked", first.Load())
	fmt.Println("joiner: shared", (<-other).Shared, "worked", second.Load())
	// Output:
	// starter: shared true worked true
	// joiner: shared true worked false
}

// A timeout can be fn's or the caller's, and errors.Is cannot tell which. So fn marks
// its errors. It sets a timeout, as its context has none of the callers' deadlines.
func ExampleGroupOf_DoContext_timeout() {
	var group singleflight.GroupOf[string]
	errBackend := errors.New("backend failed")
	ask := func(ctx context.Context, limit time.Duration) {
		load := func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			<-ctx.Done() // a backend that does not answer
			return "", fmt.Errorf("%w: %w", errBackend, ctx.Err())
		}
		_, err := group.DoContext(ctx, "report", load)
		fmt.Println("fn's own:", errors.Is(err, errBackend), err)
	}

	ask(context.Background(), time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	ask(ctx, time.Hour)
	// Output:
	// fn's own: true backend failed: context deadline exceeded
	// fn's own: false context deadline exceeded
}

// A caller that joins late gets what is left of fn's time limit. So fn limits each
// attempt, not the call, and tries again until its context is canceled, when all callers
// have left.
func ExampleGroupOf_DoContext_retry() {
	var group singleflight.GroupOf[string]
	attempts := 0
	ask := func(ctx context.Context) (string, error) {
		if attempts++; attempts < 3 {
			<-ctx.Done() // no answer
			return "", ctx.Err()
		}
		return "the report", nil
	}
	load := func(ctx context.Context) (string, error) {
		for {
			attempt, cancel := context.WithTimeout(ctx, time.Millisecond)
			v, err := ask(attempt)
			cancel()
			if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
				return v, err
			}
		}
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	v, err := group.DoContext(ctx, "report", load)
	fmt.Println(v, err, attempts)
	// Output: the report <nil> 3
}

// Files that include one another would wait for each other forever in Do, or with the
// first caller's context. fn passes on the context that it was given, so a cycle is
// reported as ErrRecursive.
func ExampleGroupOf_DoContext_recursion() {
	includes := map[string]string{"a": "b", "left": "right", "right": "left"}
	var group singleflight.GroupOf[int]
	var depth func(ctx context.Context, file string) (int, error)
	depth = func(ctx context.Context, file string) (int, error) {
		load := func(ctx context.Context) (int, error) {
			include, ok := includes[file]
			if !ok {
				return 1, nil
			}
			n, err := depth(ctx, include)
			return n + 1, err
		}
		return group.DoContext(ctx, file, load)
	}

	fmt.Println(depth(context.Background(), "a"))
	fmt.Println(depth(context.Background(), "left"))
	// Output:
	// 2 <nil>
	// 2 singleflight: call would wait for itself
}

// A goroutine that fn starts gets ErrRecursive for fn's key if its context comes from
// fn's, even through context.WithoutCancel: fn would wait for itself if it waited for
// the goroutine. With a context that comes from the request, it does not.
func ExampleGroupOf_DoContext_background() {
	var group singleflight.GroupOf[string]
	errs := make(chan error)
	news := func(context.Context) (string, error) { return "the news", nil }
	refresh := func(ctx context.Context) {
		_, err := group.DoContext(context.WithoutCancel(ctx), "news", news)
		errs <- err
	}

	request := context.Background()
	group.DoContext(request, "news", func(ctx context.Context) (string, error) {
		go refresh(ctx)
		fmt.Println(<-errs)
		go refresh(request)
		return news(ctx)
	})
	fmt.Println(<-errs)
	// Output:
	// singleflight: call would wait for itself
	// <nil>
}

// A recovered panic of fn is a *PanicError, so comparing it with http.ErrAbortHandler
// fails: errors.Is finds it. A value that is not a *PanicError does not come from fn.
func ExamplePanicError() {
	var group singleflight.GroupOf[*regexp.Regexp]
	compile := func(pattern string) (re *regexp.Regexp, err error) {
		defer func() {
			v := recover()
			e, _ := v.(error)
			var p *singleflight.PanicError
			switch {
			case v == nil:
			case errors.Is(e, http.ErrAbortHandler):
				panic(http.ErrAbortHandler) // net/http compares it
			case errors.As(e, &p):
				err = errors.New("bad pattern") // and log p.Value() and p.Stack()
			default:
				panic(v)
			}
		}()
		return group.Do(pattern, func() (*regexp.Regexp, error) {
			return regexp.MustCompile(pattern), nil
		})
	}

	fmt.Println(compile("("))
	// Output: <nil> bad pattern
}

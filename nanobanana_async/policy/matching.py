"""Match jobs with tasks where only one way is possible."""

from collections.abc import Collection, Hashable, Mapping

MOST_TOGETHER = 200
"""About more jobs whose windows share tasks nothing is decided: so many are never distinguished."""


def agreed_tasks(possible: Mapping[str, Collection[str]], alike: Mapping[str, Hashable]) -> dict[str, str]:
    """Return the task of each job on which all explanations agree.

    An explanation gives each job one of its possible tasks, no task twice. Jobs that are `alike` may be exchanged.
    """
    found: dict[str, str] = {}
    for jobs in _components(possible):
        explanation = _find_matching({job: possible[job] for job in jobs}) if len(jobs) <= MOST_TOGETHER else None
        if explanation is None:
            continue
        for job, task in explanation.items():
            without = {
                other: [each for each in possible[other] if each != task or alike[other] != alike[job]]
                for other in jobs
            }
            if _find_matching(without) is None:
                found[job] = task
    return found


def _components(possible: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Return the jobs in groups that share no task."""
    jobs_of: dict[str, list[str]] = {}
    for job, tasks in possible.items():
        for task in tasks:
            jobs_of.setdefault(task, []).append(job)
    groups: list[list[str]] = []
    seen: set[str] = set()
    for start in possible:
        group, ahead = [], [start]
        while ahead:
            job = ahead.pop()
            if job not in seen:
                seen.add(job)
                group.append(job)
                ahead += [other for task in possible[job] for other in jobs_of[task]]
        if group:
            groups.append(group)
    return groups


def _find_matching(possible: Mapping[str, Collection[str]]) -> dict[str, str] | None:
    """Return one explanation, or None if there is none: Kuhn's algorithm for bipartite matching."""
    job_of: dict[str, str] = {}

    def place(start: str) -> bool:
        came_from: dict[str, str] = {}  # task -> the job that would take it
        ahead = [start]
        while ahead:
            job = ahead.pop()
            for task in possible[job]:
                if task in came_from:
                    continue
                came_from[task] = job
                if task in job_of:
                    ahead.append(job_of[task])
                    continue
                _augment(task, came_from, job_of)
                return True
        return False

    if not all(place(job) for job in possible):
        return None
    return {job: task for task, job in job_of.items()}


def _augment(task: str, came_from: Mapping[str, str], job_of: dict[str, str]) -> None:
    """Give a free task to the job that reached it, its former task to the job that reached that, and so on."""
    while True:
        job = came_from[task]
        former = next((other for other, holder in job_of.items() if holder == job), None)
        job_of[task] = job
        if former is None:
            return
        task = former
